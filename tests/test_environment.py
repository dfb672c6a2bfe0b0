import json
import subprocess

import pytest

from asnn_goose.environment import collect_environment, cpu_model, package_versions, platform_kind, usable_cores


@pytest.fixture
def commands(monkeypatch):
    """Let no other program run: each asked command is answered from this mapping, or is missing."""
    answers = {}

    def answer(command, **_options):
        if command[0] not in answers:
            raise FileNotFoundError(command[0])
        if isinstance(answers[command[0]], Exception):
            raise answers[command[0]]
        return subprocess.CompletedProcess(command, 0, stdout=answers[command[0]], stderr="")

    monkeypatch.setattr("asnn_goose.environment.subprocess.run", answer)
    return answers


def test_an_environment_is_json_and_has_the_seed(commands):
    environment = json.loads(json.dumps(collect_environment(7)))
    assert environment["seed"] == 7
    assert environment["memory_bytes"] > 0
    assert environment["git_hash"] is None


def test_the_git_hash_is_what_git_says(commands):
    commands["git"] = "0123abc\n"
    assert collect_environment(7)["git_hash"] == "0123abc"


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("git", 2), subprocess.CalledProcessError(128, "git")])
def test_git_that_fails_or_hangs_is_no_hash(commands, error):
    commands["git"] = error
    assert collect_environment(7)["git_hash"] is None


def test_only_installed_packages_have_versions(monkeypatch):
    monkeypatch.setattr("asnn_goose.environment.PACKAGES", ("pydantic", "no-such-package-anywhere"))
    assert list(package_versions()) == ["pydantic"]


@pytest.mark.parametrize(
    ("variable", "kind"), [("KAGGLE_KERNEL_RUN_TYPE", "kaggle"), ("COLAB_RELEASE_TAG", "colab"), ("HOME", "local")]
)
def test_notebook_services_are_known_by_their_variables(monkeypatch, variable, kind):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.setenv(variable, "x")
    assert platform_kind() == kind


def test_the_command_line_names_no_folder_of_the_program(commands, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/asnn-goose", "distill", "a b"])
    assert collect_environment(1)["command_line"] == "asnn-goose distill 'a b'"


def test_the_processor_has_a_name_even_where_the_system_has_none(commands, tmp_path):
    assert cpu_model(tmp_path / "missing")
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Fast One\n")
    commands["sysctl"] = "Fast One"
    assert cpu_model(tmp_path / "cpuinfo") == "Fast One"


def test_there_is_a_core_to_run_on():
    assert usable_cores() >= 1
