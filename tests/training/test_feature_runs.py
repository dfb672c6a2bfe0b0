"""Whole runs of objectives on hidden states: what they log, keep, resume and turn off."""

import json
import math
from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from asnn_goose.config import Recipe
from asnn_goose.evaluation.perplexity import PerplexityResult
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training import loop
from asnn_goose.training.checkpoint import STATE, TENSORS
from asnn_goose.training.distill import distill
from asnn_goose.training.loop import TrainingLoop

ALIGNED = {
    "hidden_alignment": {
        "weight": 0.5, "loss": "mse", "layer_map": {"kind": "learned"}, "projector": {"kind": "mlp"},
        "introduce_steps": 3,
    },
    "feature_dynamics": {"kind": "cka", "weight": 0.1, "warmup_steps": 4},
}  # fmt: skip
READ = {"feature_dynamics": {"kind": "prediction", "warmup_steps": 1, "layers": 2}}
TRAINING = {"steps": 9, "logging_interval": 1, "evaluation_interval": 3, "checkpoint_interval": 2}


def recipe_of(small_recipe, student, training=TRAINING, **sections) -> Recipe:
    """A short recipe with this objective or these stages."""
    base = small_recipe(training=training, student=student, evaluation={"tokens": 256}).model_dump(mode="json")
    return Recipe.model_validate({**base, "samples": 0, **sections}, strict=False)


def column(folder: RunDirectory, name: str) -> list[float]:
    """A metric over the run."""
    return [line[name] for line in folder.metrics() if name in line]


@pytest.fixture(scope="module")
def staged(small_recipe) -> Recipe:
    """Three stages of a student that is shallower and narrower than its teacher; the last one has no projector."""
    stages = [{"kind": "distill", "name": name, "share": 1, "objective": objective}
              for name, objective in (("first", ALIGNED), ("second", ALIGNED), ("read", READ))]  # fmt: skip
    return recipe_of(small_recipe, {"layers": 3, "width": 32}, stages=stages)


@pytest.fixture(scope="module")
def staged_run(staged, tmp_path_factory) -> tuple[RunDirectory, list[torch.Tensor | None]]:
    """That recipe's run, and what a learned map was at the beginning of each stage."""
    starts, original = [], TrainingLoop.run

    def noted(running, *arguments):
        begun = dict(running.module.named_parameters()).get("features.alignment.mixtures.1.logits")
        starts.append(None if begun is None else begun.detach().clone())
        return original(running, *arguments)

    environment = {"recipe": "small", "platform_kind": "local"}
    folder = RunDirectory.create(tmp_path_factory.mktemp("features") / "run", "", environment)
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(TrainingLoop, "run", noted)
        return distill(staged, folder, Console(file=StringIO())).folder, starts


@pytest.fixture
def staged_folder(staged_run) -> RunDirectory:
    """That run's folder."""
    return staged_run[0]


def test_every_term_is_logged_with_what_counts_of_it(staged_folder):
    assert len(column(staged_folder, "hidden_error")) == 6
    assert all(-1.0 <= value <= 1.0 for value in column(staged_folder, "gradient_conflict"))
    assert len(column(staged_folder, "gradient_conflict")) == 6
    # Three steps a stage are fewer than the warm-up of the first two, and more than the third's.
    assert column(staged_folder, "dynamics_share") == [0.0] * 6 + [0.0, 1.0, 1.0]
    assert len(column(staged_folder, "dynamics_error")) == 9
    assert len(column(staged_folder, "trajectory_kl_nats")) == 3


def test_what_learns_beside_the_student_is_in_checkpoints_and_not_in_the_model(staged_folder):
    names = load_file(staged_folder.model / "model.safetensors").keys()
    assert not [name for name in names if "features" in name]
    assert not [name for name in load_file(staged_folder.checkpoints / "last" / TENSORS) if "features" in name]


def test_a_run_cut_short_and_resumed_ends_at_the_same_bits(
    staged, staged_folder, run_folder, run_killed_at, quiet_console
):
    folder = run_folder(staged)
    run_killed_at(staged, folder, 4)
    kept = load_file(folder.checkpoints / "last" / TENSORS)
    assert "weight.features.alignment.projectors.0.0.weight" in kept
    assert "weight.features.alignment.mixtures.1.logits" in kept
    resumed = distill(staged, RunDirectory.open(folder.path), quiet_console)
    expected, found = (load_file(run.checkpoints / "last" / TENSORS) for run in (staged_folder, resumed.folder))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert column(resumed.folder, "hidden_error") == column(staged_folder, "hidden_error")


def test_a_second_stage_goes_on_with_the_projectors_of_the_first(staged_run):
    first, second, third = staged_run[1]
    assert third is None
    # Gaussian around the first of four states, moved by three steps of AdamW.
    assert first.tolist() == [0.0, -0.5, -2.0, -4.5]
    assert 0.0 < (second - first).abs().max() < 0.1


def test_dynamics_are_off_for_good_when_perplexity_rises_too_far(
    small_recipe, run_folder, monkeypatch, quiet_console, run_killed_at
):
    """Armed at step 6, the first evaluation behind step 4; fires at step 9, and stays so through a resume."""
    objective = {"feature_dynamics": {"kind": "cka", "warmup_steps": 4}, "semantic": {"begin_step": 1, "full_step": 3}}
    student, training = {"layers": 3, "width": 256, "max_positions": 64}, {**TRAINING, "steps": 13}
    recipe = recipe_of(small_recipe, student, training, objective=objective)
    found = iter([99.0, 99.0, 10.0, 11.5, 1.0, 1.0, 1.0])
    monkeypatch.setattr(loop, "student_perplexity", lambda *_: PerplexityResult(math.log(next(found)), 1))
    folder = run_folder(recipe)
    run_killed_at(recipe, folder, 11)
    state = json.loads((folder.checkpoints / "last" / STATE).read_text())["state"]
    assert (state["dynamics_baseline"], state["dynamics_off"]) == (pytest.approx(10.0), True)
    distill(recipe, RunDirectory.open(folder.path), quiet_console)
    assert column(folder, "dynamics_share") == [0.0] * 4 + [1.0] * 5 + [0.0] * 4
    assert quiet_console.file.getvalue().count("feature dynamics are off for the rest of the run") == 1
    assert all(0.0 < error < 4.0 for error in column(folder, "semantic_error"))
