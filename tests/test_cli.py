import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asnn_goose.checks import check
from asnn_goose.cli import main
from asnn_goose.config import Recipe
from asnn_goose.config_recorded import recorded_facts
from asnn_goose.presets import recipe_yaml
from asnn_goose.recorded import Comparison
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.distill import RunOutcome

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command line in this process, in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["asnn-goose", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def recipe_file(small_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe as a user's YAML file."""
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(recipe_yaml(small_recipe()))
    return path


def asnn_goose(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """The command line as a process of its own, single-threaded as the tests are."""
    command = [sys.executable, "-m", "asnn_goose", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_for_step(folder: Path, step: int) -> None:
    """Wait until a run has logged a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and any(f'"step": {n},' in metrics.read_text() for n in range(step, step + 50)):
            return
        time.sleep(0.01)
    raise AssertionError(f"{folder} never reached step {step}")


@pytest.mark.parametrize("command", ["distill", "evaluate", "generate", "presets", "doctor"])
def test_every_command_explains_itself_with_an_example(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: asnn-goose {command}" in " ".join(out.split())


def test_presets_lists_what_is_shipped_and_prints_one_whole(run: Run) -> None:
    assert "quickstart" in run("presets")[1]
    code, out, _ = run("presets", "quickstart", "training.steps=7")
    assert code == 0
    assert "steps: 7" in out
    assert "weight_decay" in out


def test_the_record_is_a_table_and_finished_runs_stand_beside_it(run: Run, finished_run: RunOutcome) -> None:
    code, out, _ = run("presets", "--table")
    assert code == 0
    assert "307.70, 6.90×" in out
    repeated = finished_run.results.model_copy(update={"comparison": Comparison(repeated=recorded_facts("v14.3"))})
    folder = RunDirectory.create(Path("runs") / "mine", "a: 1\n", {})
    folder.write_results(repeated)
    shown = run("presets", "--table", "--runs", "runs")[1]
    assert f"{repeated.ratio.to_teacher:,.2f}×" in shown
    assert "mine" in shown


def test_strict_ends_in_exit_code_1_if_a_check_failed_and_not_if_one_warns(run: Run, finished_run: RunOutcome) -> None:
    config = finished_run.folder.config_path
    strict = ["distill", str(config), "--out", str(finished_run.folder.path), "--resume", "--strict"]
    assert run(*strict)[0] == 0
    copy = Path(shutil.copytree(finished_run.folder.path, "copy"))
    failed = (*finished_run.results.checks, check("beats", 3.0, "<", 2.0))
    RunDirectory(copy).write_results(finished_run.results.model_copy(update={"checks": failed}))
    again = ["distill", str(config), "--out", "copy", "--resume"]
    code, out, _ = run(*again, "--strict")
    assert (code, run(*again)[0]) == (1, 0)
    assert "failed: beats 3.0000, required < 2" in out


def test_the_schema_is_json_schema(run: Run) -> None:
    assert json.loads(run("presets", "--schema")[1])["title"] == "Recipe"


def test_evaluate_prints_its_protocol_with_its_figure(run: Run, finished_run: RunOutcome) -> None:
    code, out, _ = run("evaluate", str(finished_run.folder.path))
    assert code == 0
    assert f"{finished_run.results.student.perplexity:,.3f}" in out
    assert "windows of 32, stride 32, first token of each not scored" in out


def test_evaluate_as_json_is_one_object(run: Run, finished_run: RunOutcome) -> None:
    report = json.loads(run("evaluate", str(finished_run.folder.path), "--json")[1])
    assert report["models"][0]["perplexity"] == pytest.approx(finished_run.results.student.perplexity, rel=1e-5)


def test_generate_continues_the_prompt(run: Run, finished_run: RunOutcome) -> None:
    asked = ["--prompt", "The value", "--max-new-tokens", "5", "--greedy"]
    arguments = ["generate", str(finished_run.folder.path), *asked]
    code, out, _ = run(*arguments)
    assert code == 0
    assert out.startswith("The value")
    assert run(*arguments)[1] == out


def test_doctor_finds_this_machine_sound(run: Run) -> None:
    code, out, _ = run("doctor")
    assert code == 0
    assert "recurrence" in out


BAD_INPUT = {
    "unknown command": (["distil"], "Did you mean 'distill'"),
    "unknown option": (["distill", "quickstart", "--frob"], "--frob"),
    "unknown recipe": (["distill", "quikstart"], "did you mean quickstart"),
    "unknown key": (["distill", "quickstart", "training.stepz=3"], "did you mean training.steps"),
    "wrong type": (["distill", "quickstart", "training.steps=many"], "expected a whole number"),
    "missing text": (["distill", "SMALL", "data.path=nowhere.txt"], "nowhere.txt"),
    "empty text": (["distill", "SMALL", "data.path=empty.txt"], "empty.txt"),
    "binary text": (["distill", "SMALL", "data.path=binary.txt"], "binary.txt"),
    "missing teacher": (["distill", "SMALL", "teacher.name=./nowhere"], "./nowhere"),
    "missing gguf": (["distill", "SMALL", "teacher.name=nowhere.gguf"], "nowhere.gguf"),
    "wrong gguf": (["distill", "SMALL", "teacher.name=fake.gguf", "teacher.sha256=" + 32 * "ab"], "SHA-256"),
    "no gguf at all": (["distill", "SMALL", "teacher.name=fake.gguf"], "fake.gguf"),
    "hub": (["distill", "SMALL", "teacher.name=someone/some-model"], "did not answer within 5 s"),
    "run folder exists": (["distill", "SMALL", "--out", "taken"], "--resume"),
    "run folder is a file": (["distill", "SMALL", "--out", "empty.txt/run"], "empty.txt"),
    "nothing to resume": (["distill", "SMALL", "--resume"], "no unfinished run"),
    "fp16 on a CPU": (["distill", "SMALL", "training.precision=fp16"], "use auto, bf16 or fp32"),
    "text too short": (["evaluate", "TEACHER", "--data", "short.txt"], "fewer than one window"),
    "no model": (["evaluate", "./nowhere", "--data", "short.txt"], "./nowhere"),
    "no model to generate": (["generate", "taken", "--prompt", "x"], "config.json"),
    "no prompt": (["generate", "taken"], "--prompt"),
    "no folder of runs": (["presets", "--runs", "nowhere"], "no folder of runs"),
    "unknown version": (["distill", "SMALL", "recorded=v99"], "expected a version of the recorded line"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_exit_code_2_and_nothing_left(
    run: Run, recipe_file: Path, teacher_directory: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    make_bad_files(Path.cwd())
    before = sorted(Path.cwd().rglob("*"))
    arguments, hint = BAD_INPUT[case]
    places = {"SMALL": str(recipe_file), "TEACHER": str(teacher_directory)}
    code, out, err = run(*[places.get(argument, argument) for argument in arguments])
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert hint in err
    assert "Traceback" not in out + err
    assert sorted(path for path in Path.cwd().rglob("*") if "runs" not in path.parts) == before


def make_bad_files(folder: Path) -> None:
    """What the cases above point at."""
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("three words here")
    (folder / "binary.txt").write_bytes(bytes(range(256)))
    (folder / "fake.gguf").write_bytes(b"no model")
    (folder / "taken").mkdir()
    (folder / "taken" / "something.txt").write_text("precious")


def test_a_killed_process_resumed_ends_at_the_same_bits(recipe_file: Path, tmp_path: Path, private_cache: Path) -> None:
    changes = ["training.steps=40", "training.logging_interval=1", "training.checkpoint_interval=5"]
    whole = asnn_goose("distill", recipe_file, *changes, "--out", "whole", cwd=tmp_path)
    killed = asnn_goose("distill", recipe_file, *changes, "--out", "killed", cwd=tmp_path)
    wait_for_step(tmp_path / "killed", 7)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    resumed = asnn_goose("distill", recipe_file, *changes, "--out", "killed", "--resume", cwd=tmp_path)
    assert "resuming at step" in resumed.communicate()[0]
    whole.communicate()
    assert resumed.returncode == whole.returncode == 0
    expected, found = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_an_interrupted_process_saves_and_says_how_to_go_on(recipe_file: Path, tmp_path: Path) -> None:
    changes = ["training.steps=5000", "training.logging_interval=1"]
    process = asnn_goose("distill", recipe_file, *changes, "--out", "long", cwd=tmp_path)
    wait_for_step(tmp_path / "long", 2)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 130
    assert "--out long --resume" in said
    assert (tmp_path / "long/checkpoints/last/state.json").exists()


def test_resume_alone_takes_the_newest_unfinished_run(run: Run, recipe_file: Path) -> None:
    steps = ["training.steps=2", "training.evaluation_interval=2"]
    assert run("distill", str(recipe_file), *steps)[0] == 0
    code, _, err = run("distill", str(recipe_file), *steps, "--resume")
    assert (code, "no unfinished run" in err) == (2, True)


def test_a_changed_recipe_is_not_resumed(run: Run, recipe_file: Path) -> None:
    assert run("distill", str(recipe_file), "training.steps=2", "--out", "here")[0] == 0
    code, _, err = run("distill", str(recipe_file), "training.steps=3", "--out", "here", "--resume")
    assert code == 2
    assert "training.steps" in err
