import sys

import pytest

from asnn_goose.cli import main
from asnn_goose.validation_results import ValidationResults


def run(monkeypatch, *arguments):
    """Exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["asnn-goose", "validate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_a_run_s_spikes_are_judged_and_strict_makes_a_failed_verdict_an_exit_code(
    monkeypatch, capsys, trained_run, tmp_path
):
    asked = (trained_run.folder.path, "--tokens", 4096, "--window", 64, "--permutations", 39, "--out", tmp_path)
    # Ten seconds of training do not pass every criterion.
    assert run(monkeypatch, *asked, "--strict") == 1
    said = capsys.readouterr().out
    found = ValidationResults.from_json((tmp_path / "validation.json").read_text())
    assert not found.sound_verdict.passed
    for criterion in found.sound_verdict.criteria:
        assert criterion.name in said


@pytest.mark.parametrize("arguments", [(), ("model", "--self-test")])
def test_a_model_or_a_self_test_is_asked_for(monkeypatch, capsys, arguments):
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err == "error: give a MODEL, or --self-test without one\n"


def test_a_model_without_spikes_is_one_line_and_exit_code_2(monkeypatch, capsys):
    assert run(monkeypatch, "pocket") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "not a student" in said
