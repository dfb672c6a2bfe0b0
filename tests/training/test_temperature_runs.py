"""Whole runs whose temperature learns and whose weights follow schedules."""

from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from asnn_goose.config import Recipe
from asnn_goose.presets import recipe_yaml
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.checkpoint import TENSORS
from asnn_goose.training.distill import distill
from asnn_goose.training.loop import TrainingLoop

OBJECTIVE = {
    "temperature": {"kind": "ctkd", "warmup_share": 0.25, "learning_rate": 0.1},
    "kl_weight": {"kind": "linear", "initial": 0.5, "final": 1.0},
    "cross_entropy_weight": {"kind": "step", "values": [0.5, 0.25]},
}
# float32 sums in another order, over steps that depend on each other.
REPLAYED = 1e-2


def begin(path, recipe):
    return RunDirectory.create(path / "run", recipe_yaml(recipe), {"recipe": "heat", "platform_kind": "local"})


def figures(folder, name):
    return [line[name] for line in folder.metrics() if name in line]


@pytest.fixture(scope="module")
def recipe(small_recipe):
    return small_recipe(objective=OBJECTIVE, training={"evaluation_interval": 12, "checkpoint_interval": 6})


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    return distill(recipe, begin(tmp_path_factory.mktemp("whole"), recipe), Console(file=StringIO()))


def test_temperature_gradient_and_lambda_are_logged_and_end_in_the_results(whole):
    assert figures(whole.folder, "temperature_lambda") == pytest.approx([0.0, 0.25, 0.75, 1.0], abs=1e-6)
    temperatures = figures(whole.folder, "temperature")
    assert temperatures[0] == pytest.approx(2.0)
    assert whole.results.temperature.final == temperatures[-1] != pytest.approx(2.0, abs=0.01)
    assert list(whole.results.curves.temperature.values) == temperatures
    # What is maximized moves the way the loss rises.
    assert (temperatures[-1] > 2.0) is (figures(whole.folder, "temperature_gradient")[-1] > 0.0)


def test_scheduled_weights_are_logged(whole):
    assert figures(whole.folder, "kl_weight") == pytest.approx([0.625, 0.75, 0.875, 1.0])
    assert figures(whole.folder, "cross_entropy_weight") == [0.5, 0.25, 0.25, 0.25]


def test_a_run_cut_short_and_resumed_ends_at_the_same_temperature_to_the_bit(
    recipe, whole, tmp_path, quiet_console, run_killed_at
):
    folder = begin(tmp_path, recipe)
    run_killed_at(recipe, folder, 8)
    distill(recipe, RunDirectory.open(folder.path), quiet_console)
    expected, found = (load_file(run.checkpoints / "last" / TENSORS) for run in (whole.folder, folder))
    assert "weight.temperature.raw" in found
    assert "adam.exp_avg.temperature.raw" in found
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_skipped_steps_move_no_schedule(small_recipe, tmp_path, quiet_console, monkeypatch):
    training = {"steps": 5, "logging_interval": 100, "evaluation_interval": 100, "checkpoint_interval": 100}
    recipe, met = small_recipe(objective=OBJECTIVE, training=training), []
    original = TrainingLoop._update

    def update(loop, means):
        met.append(float(loop.work.module.kl_weight))
        if len(met) in (3, 4):
            loop.work.module.temperature.raw.grad.fill_(torch.nan)
        original(loop, means)

    monkeypatch.setattr(TrainingLoop, "_update", update)
    results = distill(recipe, begin(tmp_path, recipe), quiet_console).results
    assert results.counters.steps_skipped == 2
    done = [0, 1, 2, 2, 2, 3, 4]
    assert met == pytest.approx([0.5 + 0.5 * step / 5 for step in done])


def learned(target):
    heat = {"kind": "learned", "learning_rate": 0.4, "anchor": {"weight": 100.0, "target": target}}
    return {"objective": {"temperature": heat}}


def test_a_stage_goes_on_from_the_temperature_before_towards_a_target_of_its_own(small_recipe, tmp_path, quiet_console):
    stages = [{"kind": "distill", "name": "hot", "share": 1, **learned(4.0)},
              {"kind": "distill", "name": "cold", "share": 1, **learned(1.0)}]  # fmt: skip
    made = small_recipe(training={"steps": 30, "logging_interval": 1, "evaluation_interval": 100}).model_dump(
        mode="json"
    )
    folder = distill(
        Recipe.model_validate({**made, "stages": stages, "samples": 0}, strict=False),
        begin(tmp_path, small_recipe()), quiet_console,
    ).folder  # fmt: skip
    temperatures = figures(folder, "temperature")
    assert temperatures[14] > 3.0
    assert abs(temperatures[15] - temperatures[14]) < 1.0
    assert temperatures[29] == pytest.approx(1.0, abs=0.05)
    assert quiet_console.file.getvalue().count("sits at its bound 1:") == 1


def test_the_best_weights_may_come_from_a_stage_that_learned_no_temperature(small_recipe, tmp_path, quiet_console):
    stages = [{"kind": "distill", "share": 1, "objective": {}},
              {"kind": "distill", "name": "worse", "share": 1, "learning_rate": 0.5}]  # fmt: skip
    made = small_recipe(objective=OBJECTIVE).model_dump(mode="json")
    recipe = Recipe.model_validate({**made, "stages": stages, "samples": 0}, strict=False)
    results = distill(recipe, begin(tmp_path, recipe), quiet_console).results
    assert results.perplexities.best_step == 6
    assert results.temperature.final != 2.0


@pytest.mark.gpu
@pytest.mark.parametrize("gradient", ["reversed", "sign"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_replays_read_schedules_and_train_the_temperature(
    small_recipe, tmp_path, quiet_console, gradient, accumulation
):
    found = []
    for replayed in (False, True):
        training = {"steps": 30, "precision": "fp32", "cuda_graphs": replayed, "accumulation": accumulation}
        heat = {**OBJECTIVE, "temperature": {**OBJECTIVE["temperature"], "gradient": gradient}}
        recipe = small_recipe(training=training, objective=heat)
        folder = distill(recipe, begin(tmp_path / str(replayed), recipe), quiet_console).folder
        names = ("temperature", "temperature_gradient", "kl_weight", "loss_nats")
        found.append([value for name in names for value in figures(folder, name)])
    assert "could not be recorded" not in quiet_console.file.getvalue()
    assert found[1] == pytest.approx(found[0], rel=REPLAYED, abs=1e-4)
