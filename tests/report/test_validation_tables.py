from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from asnn_goose.report.validation_tables import print_validation
from asnn_goose.validation_results import CausalUse, Representation, ValidationResults
from asnn_goose.validation_verdicts import RecordedVerdict

GOLDEN = Path(__file__).parents[1] / "golden" / "validation.json"


@pytest.fixture
def validation():
    """A validation of two sites whose spikes are all but used."""
    return ValidationResults.from_json(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture
def printed():
    """What is printed of a validation."""

    def show(results):
        console = Console(file=StringIO(), width=240)
        print_validation(results, console)
        return console.file.getvalue()

    return show


def test_the_verdict_comes_first_and_the_recorded_gates_last(printed, validation):
    text = printed(validation)
    places = [
        text.index(title) for title in ("Sound verdict", "Perplexity once", "Bits that a probe", "Recorded gates")
    ]
    assert places == sorted(places)


def test_every_criterion_says_what_it_measured_asked_for_and_means(printed, validation):
    text = printed(validation)
    for criterion in validation.sound_verdict.criteria:
        line = next(line for line in text.splitlines() if f" {criterion.name} " in line)
        assert criterion.threshold in line
        assert criterion.meaning in line
        assert ("holds" in line) is criterion.passed


def test_a_failed_verdict_says_what_failed(printed, validation):
    assert "sound verdict: failed; not used" in printed(validation)


def test_both_kinds_of_estimators_stand_side_by_side(printed, validation):
    line = next(line for line in printed(validation).splitlines() if " CKA " in line and "> 0.3" in line)
    assert "0.41" in line
    assert "0.0196" in line


def test_without_recorded_estimates_nothing_stands_beside(printed, validation):
    gates = tuple(gate for gate in validation.recorded_verdict.gates if gate.estimator == "sound")
    text = printed(validation.model_copy(update={"recorded_verdict": RecordedVerdict(passed=True, gates=gates)}))
    assert "by the recorded estimators" not in text
    assert "0.0196" not in text


def test_controls_and_the_untrained_student_stand_beside_the_figures(printed, validation):
    text = printed(validation)
    line = next(line for line in text.splitlines() if "layer_0.k" in line and "block 1" in line)
    for told in ("1.8", "2.1", "85.7%", "0.4", "0.05 sign shuffle"):
        assert told in line


def test_what_was_not_measured_is_said_and_never_a_number(printed, validation):
    assert "not measured" in printed(validation)
    assert "nan" not in printed(validation).split()


def test_a_section_without_entries_is_left_out(printed, validation):
    bare = {"health": (), "information": (), "probes": (), "representation": Representation(), "causal": CausalUse()}
    text = printed(validation.model_copy(update=bare))
    assert "Sound verdict" in text
    for title in ("Health of channels", "Bits", "Debiased CKA", "Perplexity once"):
        assert title not in text


def test_names_are_shown_as_they_are(printed, validation):
    assert "runs/[bold]one" in printed(validation.model_copy(update={"model": "runs/[bold]one"}))
