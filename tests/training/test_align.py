import pytest
import torch

from asnn_goose.config_student import GooseStudent, Spikes
from asnn_goose.models.anatomy import teacher_anatomy
from asnn_goose.models.build import build_student
from asnn_goose.models.calibration import dense_encoders
from asnn_goose.models.migration import migrate_outliers
from asnn_goose.models.sublayers import BlockRecord, SublayerRecord, sublayer_records
from asnn_goose.objectives.features import channel_error
from asnn_goose.training.align import AlignmentStep, run_feed_forward, run_mixer


@pytest.fixture
def student(teacher):
    return build_student(GooseStudent(mixer="goose"), Spikes(amplitude="none"), teacher, 0)


@pytest.fixture
def records(teacher, student):
    ids = torch.randint(0, 4096, (2, 16), generator=torch.Generator().manual_seed(0))
    return ids, sublayer_records(teacher.model, teacher_anatomy(teacher.model, "pocket").blocks, ids, "all")


def perfect(record, block):
    streams = record.attention.stream, record.feed_forward.stream
    found = run_mixer(block, streams[0]).detach(), run_feed_forward(block, streams[1]).detach()
    return BlockRecord(*(SublayerRecord(stream, output) for stream, output in zip(streams, found, strict=True)))


def test_mixers_that_give_what_attention_gave_have_no_error(student, records):
    ids, seen = records
    own = [perfect(record, block) for record, block in zip(seen, student.model.layers, strict=True)]
    assert AlignmentStep(student)(ids, own).loss.item() == 0.0


def test_an_output_of_zero_has_an_error_of_one(student, records):
    ids, seen = records
    for mixer in student.model.mixers():
        torch.nn.init.zeros_(mixer.output.weight)
        torch.nn.init.zeros_(mixer.output.bias)
    seen = [BlockRecord(attention=part.attention) for part in seen]
    record = AlignmentStep(student)(ids, seen)
    assert record.means["relative_error"].item() == pytest.approx(1.0, rel=1e-6)
    assert record.loss.item() == pytest.approx(ids.numel(), rel=1e-6)


@pytest.mark.parametrize("part", ["attention", "feed_forward"])
def test_no_gradient_leaves_a_sublayer(student, records, part):
    ids, seen = records
    AlignmentStep(student)(ids, [BlockRecord(**{part: getattr(record, part)}) for record in seen]).loss.backward()
    name = {"attention": "mixer", "feed_forward": "feed_forward"}[part]
    aligned = {p for block in student.model.layers for n, p in block.named_parameters() if n.split(".")[0] == name}
    norms = {p for block in student.model.layers for p in block.get_submodule(f"{name}_norm").parameters()}
    with_gradient = {parameter for parameter in student.parameters() if parameter.grad is not None}
    assert aligned & with_gradient
    assert with_gradient <= aligned | norms


@torch.no_grad()
def test_channels_that_moved_into_the_projections_change_no_error(teacher, records):
    spikes = Spikes(sites="all", amplitude="none", scale="token", migrate=True)
    student = build_student(GooseStudent(mixer="goose"), spikes, teacher, 0)
    ids, seen = records
    with dense_encoders(student):
        before = AlignmentStep(student)(ids, seen).loss
        migrate_outliers(student, ids)
        after = AlignmentStep(student)(ids, seen).loss
    torch.testing.assert_close(after, before, rtol=1e-4, atol=0)


def walked(student, seen):
    """The stream behind each sublayer where every one is fed what the student made before it."""
    stream, behind = seen[0].attention.stream, []
    with torch.no_grad():
        for block in student.model.layers:
            for runner in (run_mixer, run_feed_forward):
                stream = stream + runner(block, stream)
                behind.append(stream)
    return behind


def told_by(streams, seen):
    """Records of a teacher whose stream these are behind each sublayer."""
    before = [seen[0].attention.stream, *streams]
    parts = [SublayerRecord(given, after - given) for given, after in zip(before, streams, strict=False)]
    return [BlockRecord(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]


def test_fed_by_itself_a_student_whose_stream_is_the_teachers_has_no_error(student, records):
    ids, seen = records
    step, streams = AlignmentStep(student, inputs="student"), walked(student, seen)
    assert step(ids, told_by(streams, seen)).loss.item() == pytest.approx(0.0, abs=1e-6)
    # What the first mixer misses, all behind it are to make up for: it is counted behind each of them.
    missed = [streams[0] + 1.0, *streams[1:]]
    assert step(ids, told_by(missed, seen)).means["relative_error"].item() > 1e-3


def test_fed_by_itself_each_sublayer_learns_from_the_stream_behind_it_alone(student, records):
    ids, seen = records
    streams = walked(student, seen)
    streams[1] = streams[1] + torch.randn(streams[1].shape, generator=torch.Generator().manual_seed(1))
    AlignmentStep(student, inputs="student")(ids, told_by(streams, seen)).loss.backward()
    moved = {
        (index, name)
        for index, block in enumerate(student.model.layers)
        for name in ("mixer.output.weight", "feed_forward.down.weight")
        if block.get_parameter(name).grad.abs().max() > 1e-4
    }
    assert moved == {(0, "feed_forward.down.weight")}


def test_a_block_that_stands_for_several_is_to_leave_what_the_last_of_them_left(teacher, records):
    ids, seen = records
    halved = build_student(GooseStudent(mixer="goose", keep_layers=2), Spikes(amplitude="none"), teacher, 0)
    kept = [seen[0], seen[2]]
    ends = [kept[1].attention.stream, kept[1].feed_forward.stream + kept[1].feed_forward.output]
    targets = [kept[0].feed_forward.stream, ends[0], kept[1].feed_forward.stream, ends[1]]
    errors = [channel_error(stream, target) for stream, target in zip(walked(halved, kept), targets, strict=True)]
    found = AlignmentStep(halved, inputs="student")(ids, kept).means["relative_error"]
    torch.testing.assert_close(found, torch.stack(errors).mean(), rtol=1e-5, atol=0)
