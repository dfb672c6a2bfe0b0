import pytest
import torch

from asnn_goose.config_student import GooseStudent, Spikes
from asnn_goose.models.anatomy import teacher_anatomy
from asnn_goose.models.build import build_student
from asnn_goose.models.calibration import dense_encoders
from asnn_goose.models.migration import migrate_outliers
from asnn_goose.models.sublayers import AttentionRecord, attention_records
from asnn_goose.training.align import AlignmentStep


@pytest.fixture
def student(teacher):
    return build_student(GooseStudent(mixer="goose"), Spikes(amplitude="none"), teacher, 0)


@pytest.fixture
def records(teacher, student):
    ids = torch.randint(0, 4096, (2, 16), generator=torch.Generator().manual_seed(0))
    return ids, seen_by(student, teacher, ids)


def seen_by(student, teacher, ids):
    blocks = teacher_anatomy(teacher.model, "pocket").blocks
    return attention_records(teacher.model, blocks, student.model.mixer_norms(), ids)


def perfect(student, record, mixer):
    output = mixer(record.given).residual.detach()
    return AttentionRecord(record.given, record.found, output)


def test_mixers_that_give_what_attention_gave_have_no_error(student, records):
    ids, seen = records
    own = [perfect(student, record, mixer) for record, mixer in zip(seen, student.model.mixers(), strict=True)]
    assert AlignmentStep(student)(ids, own).loss.item() == 0.0


def test_an_output_of_zero_has_an_error_of_one(student, records):
    ids, seen = records
    for mixer in student.model.mixers():
        torch.nn.init.zeros_(mixer.output.weight)
        torch.nn.init.zeros_(mixer.output.bias)
    record = AlignmentStep(student)(ids, seen)
    assert record.means["relative_error"].item() == pytest.approx(1.0, rel=1e-6)
    assert record.loss.item() == pytest.approx(ids.numel(), rel=1e-6)


def test_no_gradient_leaves_a_mixer(student, records):
    ids, seen = records
    AlignmentStep(student)(ids, seen).loss.backward()
    mixers = {parameter for mixer in student.model.mixers() for parameter in mixer.parameters()}
    with_gradient = {parameter for parameter in student.parameters() if parameter.grad is not None}
    assert with_gradient
    assert with_gradient <= mixers


@torch.no_grad()
def test_channels_that_moved_into_the_projections_change_no_error(teacher, records):
    spikes = Spikes(sites="all", amplitude="none", scale="token", migrate=True)
    student = build_student(GooseStudent(mixer="goose"), spikes, teacher, 0)
    ids, seen = records
    with dense_encoders(student):
        before = AlignmentStep(student)(ids, seen).loss
        migrate_outliers(student, ids)
        after = AlignmentStep(student)(ids, seen_by(student, teacher, ids)).loss
        blind = AlignmentStep(student)(ids, seen).loss
    torch.testing.assert_close(after, before, rtol=1e-4, atol=0)
    assert blind > 1.01 * before
