from io import StringIO

import pytest
from rich.console import Console

from asnn_goose.config_validation import ValidationOptions
from asnn_goose.evaluation.synthetic_spikes import EXPECTED
from asnn_goose.evaluation.validation_self_test import (
    Finding,
    RecordedFinding,
    findings_table,
    recorded_findings,
    run_self_test,
    self_test,
)
from asnn_goose.validation_verdicts import Criterion, RecordedEstimates


@pytest.fixture(scope="module")
def findings():
    return self_test(ValidationOptions())


def test_the_validator_tells_known_spikes_apart(findings):
    wrong = [finding for finding in findings if not finding.right]
    assert not wrong
    judged = [finding for finding in findings if isinstance(finding, Finding)]
    assert len(judged) == sum(map(len, EXPECTED.values()))


def test_the_margins_are_wide(findings):
    value = {(f.kind, f.criterion.name): f.criterion.value for f in findings if isinstance(f, Finding)}
    assert value["perfect", "learned"] > 1.5 * 0.2
    assert abs(value["random_projection", "learned"]) < 0.1
    assert value["rate_matched_noise", "kept"] < 0.1
    assert value["rate_matched_noise", "informative"] > 0.05


def test_the_recorded_estimators_fail_perfect_spikes(findings):
    recorded = [finding for finding in findings if isinstance(finding, RecordedFinding)]
    assert [finding.right for finding in recorded] == [True, True]
    assert all(finding.value < 0.7 * finding.gate for finding in recorded)


def test_a_wrong_finding_is_shown_and_counted(monkeypatch):
    criterion = Criterion(name="kept", value=0.9, threshold=">= 0.8", passed=True, meaning="")
    wrong = Finding("rate_matched_noise", criterion, expected=False)
    monkeypatch.setattr("asnn_goose.evaluation.validation_self_test.self_test", lambda options: [wrong])
    shown = StringIO()
    assert not run_self_test(ValidationOptions(), Console(file=shown, width=120))
    assert "1 findings are wrong" in shown.getvalue()
    assert "wrong" in shown.getvalue()


def test_what_was_not_measured_is_not_right():
    findings = recorded_findings(None, ValidationOptions())
    assert not any(finding.right for finding in findings)
    passed = recorded_findings(RecordedEstimates(mutual_information_bits=0.5, cka=0.9), ValidationOptions())
    assert not any(finding.right for finding in passed)
    assert findings_table(passed).row_count == 2
