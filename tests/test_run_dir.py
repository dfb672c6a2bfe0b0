import errno
import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from asnn_goose.errors import RunFolderError
from asnn_goose.presets import load_recipe, recipe_yaml
from asnn_goose.results import ModelResult, Protocol, Results
from asnn_goose.run_dir import RunDirectory, default_run_path, newest_unfinished, write_text_atomically

FULL_DISK = Path("/dev/full")
NOON = datetime(2026, 3, 4, 12, 0, 5)


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run", "training:\n  steps: 3\n", {"seed": 1})


@pytest.fixture
def results():
    protocol = Protocol(kind="standard", tokenizer="gpt2", window=8, stride=8, tokens=64)
    return Results(
        version="0.1.0",
        recipe="quickstart",
        recipe_hash="0",
        seed=1,
        platform="local",
        stop_reason="budget",
        protocol=protocol,
        teacher=ModelResult(perplexity=20.0),
        student=ModelResult(perplexity=30.0),
    )


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fail_with(code):
    def failing(*_arguments):
        raise OSError(code, os.strerror(code))

    return failing


def test_a_new_folder_holds_recipe_and_environment(tmp_path):
    run = RunDirectory.create(tmp_path / "a" / "b", "x: 1\n", {"seed": 1})
    assert run.recipe_yaml_text() == "x: 1\n"
    assert run.environment() == {"seed": 1}
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "environment.json"]


def test_an_empty_folder_is_taken(tmp_path):
    assert RunDirectory.create(tmp_path, "x: 1\n", {}).path == tmp_path


def test_a_folder_in_use_is_refused_with_both_ways_out(run):
    with pytest.raises(RunFolderError) as caught:
        RunDirectory.create(run.path, "x: 1\n", {})
    assert "--resume" in one_line(caught)
    assert "--out" in one_line(caught)


def test_a_parent_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError) as caught:
        RunDirectory.create(tmp_path / "file" / "run", "x: 1\n", {})
    assert "--out" in one_line(caught)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere; run the tests as another user")
def test_a_read_only_parent_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="Permission denied"):
        RunDirectory.create(tmp_path / "run", "x: 1\n", {})


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "Read-only")])
def test_a_failed_creation_leaves_nothing_behind(tmp_path, monkeypatch, code, words):
    monkeypatch.setattr("asnn_goose.run_dir.os.fsync", fail_with(code))
    with pytest.raises(RunFolderError, match=words) as caught:
        RunDirectory.create(tmp_path / "run", "x: 1\n", {})
    one_line(caught)
    assert list(tmp_path.iterdir()) == []


def test_opening_asks_for_a_run_folder(run, tmp_path):
    assert RunDirectory.open(run.path) == run
    with pytest.raises(RunFolderError, match="is no run folder"):
        RunDirectory.open(tmp_path)


def test_metrics_read_back_as_they_were_written(run):
    run.append_metrics(1, loss_nats=2.5, note="x", density=None)
    run.append_metrics(2, loss_nats=float("nan"), norm=float("inf"))
    assert run.metrics() == [
        {"step": 1, "loss_nats": 2.5, "note": "x", "density": None},
        {"step": 2, "loss_nats": None, "norm": None},
    ]


def test_every_metrics_line_is_plain_json(run):
    run.append_metrics(1, loss_nats=float("-inf"))
    assert json.loads(run.metrics_path.read_text(), parse_constant=pytest.fail) == {"step": 1, "loss_nats": None}


def test_cutting_drops_later_lines_and_a_torn_one(run):
    for step in (10, 20, 30):
        run.append_metrics(step, loss_nats=1.0)
    with run.metrics_path.open("a") as file:
        file.write('{"step": 4')
    run.cut_metrics(20)
    assert [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()] == [10, 20]


def test_a_run_without_metrics_has_none(run):
    assert run.metrics() == []
    run.cut_metrics(0)
    assert run.metrics() == []


def test_a_run_that_failed_at_once_leaves_nothing(run):
    run.discard_if_empty()
    assert not run.path.exists()


def test_a_run_with_a_checkpoint_or_a_metric_stays(run):
    run.append_metrics(0, loss=1.0)
    run.discard_if_empty()
    assert run.config_path.is_file()
    run.metrics_path.unlink()
    run.checkpoints.mkdir()
    run.discard_if_empty()
    assert run.config_path.is_file()


def test_damage_in_the_middle_is_named(run):
    run.metrics_path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunFolderError, match="line 2 is damaged"):
        run.metrics()


@pytest.mark.skipif(not FULL_DISK.exists(), reason="needs a file that is always full, as Linux has it")
def test_a_full_disk_while_logging_is_one_line(run):
    run.metrics_path.symlink_to(FULL_DISK)
    with pytest.raises(RunFolderError, match="disk is full") as caught:
        run.append_metrics(1)
    one_line(caught)


def test_results_read_back_and_finish_the_run(run, results):
    assert not run.is_finished
    run.write_results(results)
    assert run.is_finished
    assert run.read_results() == results


def test_results_of_an_unfinished_run_are_refused(run):
    with pytest.raises(RunFolderError, match="--resume"):
        run.read_results()


def test_the_same_recipe_resumes(run):
    run.check_same_recipe("# the same\ntraining: {steps: 3}\n")


@pytest.mark.parametrize(
    ("recipe", "difference"),
    [
        ("training: {steps: 4}", r"training\.steps=3, now training\.steps=4"),
        ("training: {tokens: 3}", r"training\.steps=3, now training\.steps=\(absent\)"),
        ("training: {steps: 3.0}", r"training\.steps=3, now training\.steps=3\.0"),
        ("training: {steps: 3}\nseed: 1", r"seed=\(absent\), now seed=1"),
    ],
)
def test_another_recipe_is_refused_by_its_first_difference(run, recipe, difference):
    with pytest.raises(RunFolderError, match=difference):
        run.check_same_recipe(recipe)


def test_a_resolved_recipe_is_the_same_as_itself(tmp_path):
    text = recipe_yaml(load_recipe("quickstart", []))
    RunDirectory.create(tmp_path / "run", text, {}).check_same_recipe(text)


def test_default_folders_carry_recipe_and_time_and_never_collide(tmp_path):
    names = []
    for _ in range(3):
        path = default_run_path(tmp_path, "v14.3", NOON)
        path.mkdir()
        names.append(path.name)
    assert names == ["v14.3-20260304-120005", "v14.3-20260304-120005-2", "v14.3-20260304-120005-3"]


def test_the_newest_unfinished_run_of_the_recipe_is_found(tmp_path, results):
    names = ["v14-20260101-000000", "v14-20260101-000000-2", "v14-20260101-000000-10", "v14.3-20260909-000000"]
    runs = {name: RunDirectory.create(tmp_path / name, "x: 1\n", {}) for name in [*names, "v14-20260202-000000"]}
    (tmp_path / "v14-20260303-000000").mkdir()
    runs["v14-20260202-000000"].write_results(results)
    assert newest_unfinished(tmp_path, "v14") == runs["v14-20260101-000000-10"]


def test_no_unfinished_run_is_none(tmp_path):
    assert newest_unfinished(tmp_path / "missing", "v14") is None


def test_a_failed_write_keeps_the_old_text(tmp_path, monkeypatch):
    write_text_atomically(tmp_path / "file", "old")
    monkeypatch.setattr("asnn_goose.run_dir.os.fsync", fail_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write_text_atomically(tmp_path / "file", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]
