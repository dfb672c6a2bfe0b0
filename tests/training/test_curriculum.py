import json
from io import StringIO
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors.torch import load_file

from asnn_goose.config import Recipe
from asnn_goose.data.batches import BatchPlan
from asnn_goose.data.tokens import TokenRows
from asnn_goose.errors import CheckpointError
from asnn_goose.models.build import build_student
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.checkpoint import TENSORS
from asnn_goose.training.curriculum import FILE, measure_order, read_order
from asnn_goose.training.distill import distill

POCL = {
    "curriculum": {
        "batches": 5, "pretraining": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
        "pacing": {"kind": "step", "temperatures": [1.0, 1.5, 2.0]},
    },
}  # fmt: skip
SMOOTH = {
    "curriculum": {"batches": 5, "difficulty": {"kind": "loss", "of": "teacher"},
                   "pacing": {"kind": "linear", "start": 0.2, "until": 0.7}},
    "spikes": {"threshold": {"kind": "progressive", "until": 0.6}, "amplitude_init": "jitter"},
    "stages": [
        {"kind": "distill", "name": "first", "share": 5},
        {"kind": "distill", "name": "second", "share": 7, "moments": "kept", "transition": 4, "warmup_steps": 2,
         "objective": {"cross_entropy_weight": 0.5, "temperature": {"kind": "fixed", "value": 1.5}}},
    ],
}  # fmt: skip
RECIPES = {"pocl": POCL, "smooth": SMOOTH}


def recipe_of(small_recipe, sections):
    """Twelve steps of two micro-batches of four rows; checkpoints fall between the parts' borders at 4 and 8."""
    training = {"accumulation": 2, "checkpoint_interval": 3, "learning_rate_course": "run", "decay": "all",
                "logging_interval": 2, "evaluation_interval": 12}  # fmt: skip
    base = small_recipe(training=training, evaluation={"tokens": 256}).model_dump(mode="json")
    return Recipe.model_validate({**base, "samples": 0, **sections}, strict=False)


@pytest.fixture(scope="module", params=RECIPES)
def whole_run(request, small_recipe, tmp_path_factory):
    """A run that was never stopped, its recipe, and the rows of each of its batches."""
    recipe = recipe_of(small_recipe, RECIPES[request.param])
    folder = RunDirectory.create(
        tmp_path_factory.mktemp("whole") / "run", "", {"recipe": "x", "platform_kind": "local"}
    )
    rows, original = {}, BatchPlan.row_numbers

    def noted(plan, rows_seen):
        rows[(plan.course.first_step, rows_seen)] = found = original(plan, rows_seen)
        return found

    with patch.object(BatchPlan, "row_numbers", noted):
        distill(recipe, folder, Console(file=StringIO()))
    return request.param, recipe, folder, rows


def test_a_run_cut_in_a_curriculum_and_resumed_ends_at_the_same_bits(
    whole_run, run_folder, run_killed_at, quiet_console
):
    _, recipe, whole, _ = whole_run
    folder = run_folder(recipe)
    run_killed_at(recipe, folder, 7)
    distill(recipe, RunDirectory.open(folder.path), quiet_console)
    expected, found = (load_file(run.checkpoints / "last" / TENSORS) for run in (whole, folder))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (folder.path / FILE).read_text() == (whole.path / FILE).read_text()


def test_both_micro_batches_of_a_step_are_of_its_part(whole_run):
    name, _, folder, rows = whole_run
    order, hardness = read_order(folder)
    assert np.array_equal(hardness, np.sort(hardness))
    assert len(set(order.tolist())) == len(order) == 20
    if name != "pocl":
        return
    for (_, rows_seen), taken in rows.items():
        # Eight rows a step, four steps a part: a third of 20 rows is 6, two thirds are 13.
        part = min(rows_seen // 8 // 4, 2)
        assert set(taken.tolist()) <= set(order[: (6, 13, 20)[part]].tolist())
    assert len(set(np.concatenate(list(rows.values())).tolist())) == 20


def test_stages_go_on_with_moments_and_rates_of_the_run(whole_run):
    name, _, folder, _ = whole_run
    kept = load_file(folder.checkpoints / "last" / TENSORS)
    steps = {float(value) for key, value in kept.items() if key.startswith("adam.step.")}
    assert steps == {12.0}
    rates = [line["learning_rate"] for line in folder.metrics() if "learning_rate" in line]
    assert rates[-1] == pytest.approx(5e-3 * 0.5 * (1 + np.cos(np.pi * 9 / 10)))
    if name == "smooth":
        alphas = [key for key in kept if key.endswith(".alpha") and key.startswith("weight.")]
        assert len(alphas) == 4
        assert all(float(kept[key]) == 1.0 for key in alphas)


@pytest.mark.parametrize("keep", [True, False])
def test_weights_that_only_judge_are_put_back(small_recipe, teacher, keep):
    pretraining = {"steps": 1, "learning_rate": 0.5, "keep": keep}
    recipe = recipe_of(small_recipe, {"curriculum": {"batches": 1, "pretraining": pretraining}})
    student = build_student(recipe.student, recipe.spikes, teacher, 0)
    before = [weight.clone() for weight in student.parameters()]
    rows = TokenRows(tokens=np.arange(640, dtype=np.uint16), window=32, stride=32)
    material = SimpleNamespace(student=student, teacher=teacher)
    order, _ = measure_order(recipe, recipe.curriculum, material, rows, Accelerator(cpu=True))
    assert len(order) == 4
    assert all(map(torch.equal, before, student.parameters())) is not keep


def test_a_run_without_its_order_cannot_go_on(tmp_path):
    for text in (None, json.dumps({"rows": [1]}), "{"):
        if text is not None:
            (tmp_path / FILE).write_text(text)
        with pytest.raises(CheckpointError, match=r"curriculum\.json cannot be read .* start it again with another"):
            read_order(RunDirectory(tmp_path))
