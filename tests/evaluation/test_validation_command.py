from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from asnn_goose.config_validation import ValidationOptions
from asnn_goose.errors import ConfigError, DataError, VocabularyMismatchError
from asnn_goose.evaluation.validation_command import (
    ValidationRequest,
    checked_student,
    output_folder,
    teacher_name,
    validate_model,
)
from asnn_goose.models.loading import load_causal_lm
from asnn_goose.validation_results import ValidationResults

OPTIONS = ValidationOptions(
    window=64, calibration_rows=8, channels=4, components=2, bins=4, permutations=39, permuted_rows=8,
    causal_tokens=256, neighbor_tokens=200, greatest_lag=1,
)  # fmt: skip


@pytest.fixture
def console():
    return Console(file=StringIO())


@pytest.fixture(scope="module")
def run(trained_run):
    return str(trained_run.folder.path)


def test_a_run_folder_is_validated_on_its_own_text_against_its_own_teacher(run, teacher_directory, console):
    results = validate_model(ValidationRequest(run, tokens=2048), OPTIONS, console)
    folder = Path(run) / "validation"
    assert ValidationResults.from_json((folder / "validation.json").read_text()) == results
    assert (results.teacher, results.text.rows, results.text.window) == (str(teacher_directory), 32, 64)
    assert sorted(path.suffix for path in folder.iterdir()).count(".png") >= 1


def test_too_little_text_is_refused_and_nothing_is_written(run, text_file, tmp_path, console):
    request = ValidationRequest(run, data=str(text_file), tokens=512, out=tmp_path / "out")
    with pytest.raises(DataError, match=r"has 8 rows of 64 tokens; .* need \d+ \([\d,]+ tokens\): give more text"):
        validate_model(request, OPTIONS, console)
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_another_vocabulary_is_refused(run, other_vocabulary, console):
    with pytest.raises(VocabularyMismatchError, match="teacher of its own vocabulary"):
        validate_model(ValidationRequest(run, teacher=str(other_vocabulary)), OPTIONS, console)


def test_what_is_no_student_is_refused(teacher_directory, console):
    with pytest.raises(ConfigError, match="is a GPT2LMHeadModel, not a student"):
        validate_model(ValidationRequest(str(teacher_directory)), OPTIONS, console)


def test_a_student_that_does_not_spike_is_refused_unless_it_is_the_twin(run):
    loaded = load_causal_lm(run)
    loaded.model.config.spikes["sites"] = []
    with pytest.raises(ConfigError, match="has no spikes to validate"):
        checked_student(loaded)
    assert checked_student(loaded, has_spikes=False) is loaded.model


def test_results_go_where_they_are_asked_for_or_beside_the_run_or_here(run, tmp_path):
    assert output_folder(ValidationRequest(run, out=tmp_path)) == tmp_path
    assert output_folder(ValidationRequest(run)) == Path(run) / "validation"
    assert output_folder(ValidationRequest("models/mine")) == Path("validation-mine")


def test_the_teacher_is_the_one_asked_for_the_run_s_or_the_student_s_own(run):
    student = load_causal_lm(run).model
    assert teacher_name(ValidationRequest(run, teacher="other"), student) == "other"
    assert teacher_name(ValidationRequest("elsewhere"), student) == student.config.teacher_name
    student.config.teacher_name = None
    with pytest.raises(ConfigError, match="give --teacher NAME"):
        teacher_name(ValidationRequest("elsewhere"), student)
