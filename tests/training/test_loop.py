from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.checkpoint import TENSORS
from asnn_goose.training.distill import distill

STAGES = [
    {"kind": "align", "share": 1, "learning_rate": 2e-3},
    {"kind": "distill", "share": 1},
    {"kind": "distill", "name": "long", "share": 1, "window": 64, "batch_size": 2, "copied_learning_rate": 1e-4},
]


def staged(small_recipe, **sections):
    training = {
        "steps": 9,
        "evaluation_interval": 3,
        "checkpoint_interval": 2,
        "learning_rate": 5e-4,
        **sections.pop("training", {}),
    }
    student = {"mixer": "goose", "keep_layers": 2, "calibration_tokens": 512}
    base = small_recipe().model_dump(mode="json")
    fields = {**base, "student": student, "samples": 0, "stages": STAGES, "training": {**base["training"], **training}}
    return type(small_recipe()).model_validate({**fields, **sections}, strict=False)


@pytest.fixture(scope="module")
def staged_run(small_recipe, tmp_path_factory):
    recipe = staged(small_recipe, controls=True)
    folder = RunDirectory.create(
        tmp_path_factory.mktemp("staged") / "run", "", {"recipe": "staged", "platform_kind": "local"}
    )
    return distill(recipe, folder, Console(file=StringIO()))


def test_every_stage_reports_its_perplexity_and_its_tokens(staged_run):
    stages = staged_run.results.stages
    assert [stage.name for stage in stages] == ["align", "distill", "long"]
    assert [stage.steps for stage in stages] == [3, 3, 3]
    assert [stage.tokens for stage in stages] == [3 * 4 * 32, 3 * 4 * 32, 3 * 2 * 64]
    assert stages[-1].perplexity < stages[0].perplexity
    assert stages[0].ratio_to_teacher == pytest.approx(stages[0].perplexity / staged_run.results.teacher.perplexity)
    assert staged_run.results.hardware.tokens == sum(stage.tokens for stage in stages)


def test_controls_are_measured_before_anything_is_fitted(staged_run):
    results = staged_run.results
    calibrated = results.curves.perplexity.values[0]
    assert results.controls.random_weights > results.controls.untrained_conversion > 2 * calibrated


def test_an_alignment_stage_holds_everything_but_the_mixers(staged_run, teacher):
    line = next(line for line in staged_run.folder.metrics() if line.get("stage") == "align")
    assert 0.0 < line["relative_error"] < 1.0
    assert "loss_nats" not in line


@pytest.mark.parametrize("cut", [1, 3, 4, 7])
def test_a_staged_run_cut_short_and_resumed_ends_at_the_same_bits(
    small_recipe, run_folder, staged_run, run_killed_at, quiet_console, cut
):
    recipe = staged(small_recipe, controls=True)
    folder = run_folder(recipe)
    run_killed_at(recipe, folder, cut)
    resumed = distill(recipe, RunDirectory.open(folder.path), quiet_console)
    expected, found = (load_file(run.checkpoints / "last" / TENSORS) for run in (staged_run.folder, resumed.folder))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [stage.model_dump() for stage in resumed.results.stages] == [
        stage.model_dump() for stage in staged_run.results.stages
    ]


def test_a_stage_that_has_reached_its_goal_makes_room_for_the_next(small_recipe, run_folder, quiet_console):
    stages = [{**STAGES[0], "share": 8, "exit": {"below_ratio": 1e9}}, {**STAGES[1], "share": 1}]
    recipe = staged(small_recipe, stages=stages, training={"steps": 9, "evaluation_interval": 2})
    results = distill(recipe, run_folder(recipe), quiet_console).results
    assert [(stage.steps, stage.stop_reason) for stage in results.stages] == [(2, "exit"), (1, "budget")]
    assert results.counters.steps_done == 3
