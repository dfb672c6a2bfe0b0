import pytest

from asnn_goose import doctor
from asnn_goose.doctor import examine_machine


def verdicts() -> dict[str, str]:
    return {finding.name: finding.verdict for finding in examine_machine()}


def test_this_machine_passes() -> None:
    assert "failed" not in verdicts().values()


def test_a_recurrence_that_is_wrong_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    original = doctor.linear_scan

    def wrong(*arguments: object, backend: str = "auto") -> object:
        states, final = original(*arguments, backend=backend)
        return (states, final) if backend == "reference" else (states + 1.0, final)

    monkeypatch.setattr(doctor, "linear_scan", wrong)
    assert verdicts()["recurrence"] == "failed"


def test_too_little_disk_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "WANTED_DISK_BYTES", 1 << 60)
    assert verdicts()["cache"] == "failed"


def test_a_silent_hub_is_only_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "hub_answers", lambda: False)
    assert verdicts()["model hub"] == "note"
