from pathlib import Path

import pytest
from rich.console import Console

from asnn_goose.errors import DataError, VocabularyMismatchError
from asnn_goose.evaluation.command import EvaluationRequest, evaluate_models, requested_protocol
from asnn_goose.training.distill import RunOutcome


def request(model: Path | str, **changes: object) -> EvaluationRequest:
    fields = {"data": None, "teacher": None, "window": None, "tokens": None, "protocol": None, **changes}
    return EvaluationRequest(str(model), **fields)


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


def test_a_run_folder_is_measured_as_its_run_measured_it(finished_run: RunOutcome, console: Console) -> None:
    report = evaluate_models(request(finished_run.folder.path), console)
    assert report.rows[0].perplexity == pytest.approx(finished_run.results.student.perplexity, rel=1e-5)


def test_the_ratio_to_the_teacher_is_the_runs(
    finished_run: RunOutcome, teacher_directory: Path, console: Console
) -> None:
    report = evaluate_models(request(finished_run.folder.path, teacher=str(teacher_directory)), console)
    assert report.ratio == pytest.approx(finished_run.results.ratio.to_teacher, rel=1e-5)
    assert report.as_dict()["models"][1]["name"] == str(teacher_directory)


def test_another_text_is_read_whole(finished_run: RunOutcome, text_file: Path, console: Console) -> None:
    report = evaluate_models(request(finished_run.folder.path, data=str(text_file), tokens=320), console)
    assert report.scored_tokens == 10 * 31
    assert requested_protocol(request(finished_run.folder.path, data=str(text_file))).tokens is None


def test_the_protocol_can_be_changed(finished_run: RunOutcome, console: Console) -> None:
    report = evaluate_models(request(finished_run.folder.path, protocol="recorded", window=16, tokens=64), console)
    assert "lines alone" in report.protocol
    assert "stride 8" in report.protocol


def test_a_model_without_a_text_of_its_own_needs_one(teacher_directory: Path, console: Console) -> None:
    with pytest.raises(DataError, match="give --data FILE"):
        evaluate_models(request(teacher_directory), console)


def test_two_vocabularies_do_not_compare(finished_run: RunOutcome, other_vocabulary: Path, console: Console) -> None:
    with pytest.raises(VocabularyMismatchError, match="teacher of its own vocabulary"):
        evaluate_models(request(finished_run.folder.path, teacher=str(other_vocabulary)), console)
