import json
import re
from pathlib import Path

import pytest

from asnn_goose.presets import load_recipe, recipe_hash, recipe_yaml
from many_runs import PlannedRun, chosen, is_finished, main, read_plan, sha256_of
from spiking_frontier import read_run


@pytest.fixture
def plan(tmp_path, small_recipe):
    """Writes a plan of runs of a small recipe."""
    recipe = tmp_path / "small.yaml"
    recipe.write_text(recipe_yaml(small_recipe(training={"steps": 4})))

    def write(text):
        path = tmp_path / "plan.yaml"
        path.write_text(text.replace("RECIPE", str(recipe)))
        return path

    return write


def test_a_run_has_the_plans_overrides_then_the_callers_then_its_own(plan):
    path = plan("common: [a=1]\nruns:\n  one: {recipe: r, overrides: [b=2]}\n  quickstart: {}\n")
    assert read_plan(path, ["c=3"]) == [
        PlannedRun("one", "r", ("a=1", "c=3", "b=2")),
        PlannedRun("quickstart", "quickstart", ("a=1", "c=3")),
    ]


@pytest.mark.parametrize("text", ["runs: [one]", "common: []", "runs: {one: {steps: 3}}", "3"])
def test_what_is_no_plan_is_refused_in_one_line(plan, tmp_path, capsys, text):
    assert main([str(plan(text)), "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_plan_that_is_not_there_is_refused_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none.yaml"), "--out", str(tmp_path / "runs")]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err


def test_a_run_that_the_plan_does_not_have_is_refused_in_one_line(plan, tmp_path, capsys):
    path = plan("runs: {one: {recipe: RECIPE}}")
    assert main([str(path), "--out", str(tmp_path / "runs"), "training.seed=1", "--only", "nothing"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--only nothing" in line
    assert "it has one" in line
    assert not (tmp_path / "runs").exists()


def test_patterns_choose_runs_in_the_plans_order():
    runs = [PlannedRun(name, "r", ()) for name in ("v9-s42", "v9-s43", "v12-s42", "other")]
    assert [run.name for run in chosen(runs, ["v12-*", "*-s42"])] == ["v9-s42", "v12-s42"]
    assert chosen(runs, None) == runs


def test_finished_runs_become_bundles_and_a_failed_one_is_named(plan, tmp_path, text_file, capsys):
    path = plan("runs:\n  good: {recipe: RECIPE}\n  bad: {recipe: RECIPE, overrides: [spikes.levels=0]}\n")
    given = [str(path), "--out", str(tmp_path / "runs"), "--text", str(text_file), "--windows", "32"]
    assert main([*given, "--drop-checkpoints"]) == 1
    said = capsys.readouterr().out
    assert not (tmp_path / "runs" / "good" / "checkpoints").exists()
    assert (tmp_path / "runs" / "good" / "model").is_dir()
    assert "good: " in said
    assert "bad: failed" in said
    found = json.loads((tmp_path / "runs" / "good.json").read_text())
    assert found["evaluations"]["32"]["models"][0]["perplexity"] > 1
    assert [line["step"] for line in found["metrics"] if "loss_nats" in line]
    assert read_run(tmp_path / "runs" / "good.json", "good").results.student.perplexity is not None


def test_a_run_is_finished_where_its_file_has_all_that_is_asked_for(tmp_path):
    run, path = PlannedRun("one", "r", ()), tmp_path / "one.json"
    assert not is_finished(tmp_path, run, None, [32])
    path.write_text('{"evaluations": {"32": {"models": []}, "64": null}}')
    assert is_finished(tmp_path, run, None, [32, 64])
    text = tmp_path / "text.txt"
    text.write_text("one")
    assert is_finished(tmp_path, run, text, [32])
    assert not is_finished(tmp_path, run, text, [32, 64])
    path.write_text(json.dumps({"evaluations": {"32": {"models": []}}, "text_sha256": sha256_of(text)}))
    assert is_finished(tmp_path, run, text, [32])
    text.write_text("another")
    assert not is_finished(tmp_path, run, text, [32])
    path.write_text('{"evaluations": ')
    assert not is_finished(tmp_path, run, None, [32])


def test_a_finished_run_is_left_alone(plan, tmp_path, capsys):
    path, out = plan("runs:\n  done: {recipe: nothing}\n"), tmp_path / "runs"
    checkpoints = out / "done" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (out / "done.json").write_text('{"evaluations": {}}')
    assert main([str(path), "--out", str(out)]) == 0
    assert capsys.readouterr().out == "done: finished before\n"
    assert checkpoints.is_dir()
    assert main([str(path), "--out", str(out), "--drop-checkpoints"]) == 0
    assert not checkpoints.exists()


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "benchmarks" / "plans").glob("*.yaml")), ids=str)
def test_every_run_of_a_shipped_plan_is_a_recipe_of_its_own(path):
    runs = read_plan(path, [])
    recipes = {recipe_hash(load_recipe(run.recipe, run.overrides)) for run in runs}
    assert len(runs) >= 8
    assert len({run.name for run in runs}) == len(recipes) == len(runs)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]*", run.name) for run in runs)
