import pytest
import torch

from asnn_goose.config_student import GooseStudent, Spikes
from asnn_goose.models.anatomy import teacher_anatomy
from asnn_goose.models.build import build_student
from asnn_goose.models.calibration import dense_encoders
from asnn_goose.models.migration import migrate_outliers
from asnn_goose.models.sublayers import BlockRecord, SublayerRecord, sublayer_records
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
