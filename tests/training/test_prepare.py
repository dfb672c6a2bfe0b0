import dataclasses
from io import StringIO

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from asnn_goose.config import Recipe
from asnn_goose.config_objective import Activity
from asnn_goose.config_student import GooseStudent
from asnn_goose.config_text import PackedRows
from asnn_goose.evaluation.student import site_encoders
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.presets import recipe_yaml
from asnn_goose.run_dir import RunDirectory
from asnn_goose.spikes.calibrate import GRID
from asnn_goose.training.distill import distill
from asnn_goose.training.prepare import replaced_blocks, stage_batches
from asnn_goose.training.rows import PreparedText, TokenizedText
from asnn_goose.training.stages import plan_stages


def test_the_blocks_that_stand_for_the_students_are_the_kept_ones(small_recipe, teacher):
    recipe = small_recipe().model_copy(update={"student": GooseStudent(mixer="goose", keep_layers=(1, 3))})
    blocks = replaced_blocks(recipe, teacher)
    bodies = [teacher.model.transformer.h[index].attn for index in (1, 3)]
    assert [block.attention for block in blocks] == bodies


def test_a_wkv_student_replaces_no_attention(small_recipe, teacher):
    assert replaced_blocks(small_recipe(), teacher) == ()


def test_teacher_perplexity_and_controls_stand_in_the_metrics(finished_run):
    lines = finished_run.folder.metrics()
    assert torch.isfinite(torch.tensor(next(x["teacher_perplexity"] for x in lines if "teacher_perplexity" in x)))
    assert not any("control" in line for line in lines)


def test_a_stage_reads_the_parts_in_its_own_shares(small_recipe):
    ones, twos = (TokenizedText(np.full(2000, token, dtype=np.uint16), PackedRows(), 0.5) for token in (1, 2))
    text = PreparedText((ones, twos), (), "", "")
    (plan,) = plan_stages(small_recipe(), processes=1)
    for weights, expected in ((None, {1, 2}), ((0.0, 1.0), {2})):
        plan = dataclasses.replace(plan, part_weights=weights)
        batches = stage_batches(small_recipe(), plan, text, Accelerator(cpu=True))
        assert {token for step in range(8) for token in batches.batch(step).unique().tolist()} == expected


def spiking_everywhere(small_recipe, migrate):
    fields = small_recipe(
        training={"steps": 4, "evaluation_interval": 2, "logging_interval": 2, "activation_checkpointing": True}
    ).model_dump(mode="json")
    fields["student"] = {"mixer": "goose", "keep_layers": 2, "calibration_tokens": 512}
    fields["spikes"] = {
        "sites": "all+head", "levels": 4, "amplitude": "channel", "scale": "token", "migrate": migrate
    }  # fmt: skip
    fields["stages"] = [{"kind": "align", "share": 1}, {"kind": "distill", "share": 1}]
    return Recipe.model_validate(fields, strict=False)


@pytest.fixture(scope="module")
def whole_runs(small_recipe, tmp_path_factory):
    """Uninterrupted runs, without and with channels that move."""
    runs = {}
    for migrate in (False, True):
        recipe = spiking_everywhere(small_recipe, migrate)
        about = {"recipe": "everywhere", "platform_kind": "local"}
        folder = RunDirectory.create(tmp_path_factory.mktemp("everywhere") / "run", recipe_yaml(recipe), about)
        runs[migrate] = distill(recipe, folder, Console(file=StringIO()))
    return runs


@pytest.mark.parametrize("migrate", [False, True])
def test_a_run_with_spikes_everywhere_calibrates_aligns_trains_and_is_saved(whole_runs, migrate):
    outcome = whole_runs[migrate]
    spikes = outcome.results.spikes
    assert spikes.spike_fed_mac_share == spikes.measured_spike_fed_mac_share == 1.0
    assert all(check.passed for check in outcome.results.checks if "share" in check.name)
    assert len(spikes.layers) == 2 * 7 + 1
    loaded = GooseForCausalLM.from_pretrained(outcome.folder.model)
    assert loaded.config.tie_word_embeddings != migrate
    for encoder in site_encoders(loaded).values():
        assert min(abs(float(torch.as_tensor(encoder.alpha).detach()) - alpha) for alpha in GRID) < 1e-6


def test_a_run_whose_events_are_limited_begins_within_the_limit(small_recipe, run_folder, quiet_console, whole_runs):
    free = spiking_everywhere(small_recipe, migrate=True)
    objective = free.objective.model_copy(update={"activity": Activity(events=0.2, sites={"k": 0.1})})
    recipe = free.model_copy(update={"objective": objective, "stages": free.stages[:1]})
    limited = distill(recipe, run_folder(recipe), quiet_console).results.spikes
    # Thresholds do not learn here, and alignment has no penalty: what is less, was less from the beginning.
    limits = [0.1 if row.site == "k" else 0.2 for row in limited.layers]
    rows = [row for row, most in zip(limited.layers, limits, strict=True) if row.events_per_activation > 1.5 * most]
    assert {row.site for row in rows} <= {"v"}
    others = whole_runs[True].results.spikes.layers
    assert sum(row.events_per_activation > 0.3 for row in others) > len(others) / 2


def test_a_run_whose_channels_moved_into_an_untied_head_is_resumed_to_the_bit(
    small_recipe, run_folder, quiet_console, run_killed_at, whole_runs
):
    recipe = spiking_everywhere(small_recipe, migrate=True)
    folder = run_folder(recipe)
    run_killed_at(recipe, folder, 3)
    models = [distill(recipe, folder, quiet_console).folder.model, whole_runs[True].folder.model]
    resumed, whole = (GooseForCausalLM.from_pretrained(model).state_dict() for model in models)
    assert all(torch.equal(weight, whole[name]) for name, weight in resumed.items())
