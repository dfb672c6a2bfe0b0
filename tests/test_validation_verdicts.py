import pytest
from pydantic import ValidationError

from asnn_goose.validation_verdicts import Criterion, Gate, RecordedEstimates


def test_figures_keep_six_digits():
    assert RecordedEstimates(cka=0.0196000049).cka == 0.0196


def test_what_is_not_finite_is_null():
    assert RecordedEstimates(cka=float("nan"), firing_rate=float("inf")) == RecordedEstimates()


def test_a_gate_says_whose_estimate_it_judges():
    with pytest.raises(ValidationError, match="estimator"):
        Gate(name="CKA", value=0.1, threshold="> 0.3", passed=False)


def test_only_known_criteria_are_judged():
    with pytest.raises(ValidationError, match="name"):
        Criterion(name="nice", value=0.1, threshold="> 0", passed=True, meaning="")
