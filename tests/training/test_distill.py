import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import asnn_goose
from asnn_goose.config import Recipe
from asnn_goose.errors import CheckpointError, TrainingDivergedError
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training import distill as distill_module
from asnn_goose.training.checkpoint import STATE, TENSORS, load_checkpoint
from asnn_goose.training.distill import RunOutcome, distill, newest_checkpoint
from asnn_goose.training.loop import TrainingLoop

MakeRecipe = Callable[..., Recipe]
MakeFolder = Callable[[Recipe], RunDirectory]


def last_weights(folder: RunDirectory) -> dict[str, torch.Tensor]:
    """The tensors of a run's last checkpoint."""
    return load_file(folder.checkpoints / "last" / TENSORS)


def test_perplexity_falls_at_every_evaluation(finished_run: RunOutcome) -> None:
    values = finished_run.results.curves.perplexity.values
    assert len(values) == 3
    assert all(later < earlier for earlier, later in pairwise(values))


def test_the_run_folder_is_complete(finished_run: RunOutcome) -> None:
    left = {path.name for path in finished_run.folder.path.iterdir()}
    assert left >= {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "model", "results.json",
                    "figures", "report.html"}  # fmt: skip
    assert {path.name for path in finished_run.folder.checkpoints.iterdir()} == {"best", "last", "previous"}


def test_metrics_hold_what_a_reader_of_a_run_asks_for(finished_run: RunOutcome) -> None:
    line = next(line for line in finished_run.folder.metrics() if "loss_nats" in line)
    assert line.keys() >= {"step", "loss_nats", "perplexity", "gradient_norm", "clip_rate", "learning_rate",
                           "scaler_scale", "memory_bytes", "step_ms", "tokens_per_second", "density",
                           "spikes", "skipped_steps"}  # fmt: skip
    columns = line["spikes"]
    assert columns["sites"] == ["layer_0.k", "layer_0.v", "layer_1.k", "layer_1.v"]
    assert columns.keys() >= {"density", "events_per_activation", "silent_channel_fraction", "sign_balance", "alpha",
                              "saturated_channel_fraction", "mean_value", "value_deviation", "amplitude"}  # fmt: skip
    assert {len(column) for column in columns.values()} == {4}


def test_results_agree_with_the_checkpoint_and_the_metrics(finished_run: RunOutcome) -> None:
    results, folder = finished_run.results, finished_run.folder
    state = load_checkpoint(folder.checkpoints / "last").state
    teacher = next(line["teacher_perplexity"] for line in folder.metrics() if "teacher_perplexity" in line)
    assert results.student.perplexity == state.best_perplexity
    assert results.ratio.to_teacher == pytest.approx(state.best_perplexity / teacher)
    assert results.counters.steps_done == state.step == 12
    assert results.hardware.tokens == 12 * 4 * 32


def test_the_exported_model_is_the_best_one_and_generates(finished_run: RunOutcome) -> None:
    folder = finished_run.folder.model
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    best = load_file(finished_run.folder.checkpoints / "best" / TENSORS)
    assert isinstance(model, asnn_goose.GooseForCausalLM)
    assert torch.equal(model.model.embed_tokens.weight, best["weight.student.model.embed_tokens.weight"])
    ids = tokenizer("The value", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=4, do_sample=True, pad_token_id=0).shape[1] == ids.shape[1] + 4


def test_a_run_cut_short_and_resumed_ends_at_the_same_bits(
    small_recipe: MakeRecipe, run_folder: MakeFolder, finished_run: RunOutcome,
    run_killed_at: Callable[[Recipe, RunDirectory, int], None], quiet_console: Console,
) -> None:  # fmt: skip
    recipe = small_recipe()
    folder = run_folder(recipe)
    run_killed_at(recipe, folder, 7)
    resumed = distill(recipe, RunDirectory.open(folder.path), quiet_console)
    expected, found = last_weights(finished_run.folder), last_weights(resumed.folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_resumed_metrics_tell_each_step_once(finished_run: RunOutcome) -> None:
    steps = [line["step"] for line in finished_run.folder.metrics() if "loss_nats" in line]
    assert steps == sorted(set(steps)) == [3, 4, 6, 8, 9, 12]


@pytest.mark.parametrize("damage", [b"", b"not a tensor file"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    finished_run: RunOutcome, tmp_path: Path, quiet_console: Console, damage: bytes
) -> None:
    folder = copied_folder(finished_run.folder, tmp_path / "copy")
    (folder.checkpoints / "last" / TENSORS).write_bytes(damage)
    found = newest_checkpoint(folder, quiet_console)
    assert found.path.name == "previous"
    assert "damaged" in quiet_console.file.getvalue()


def test_with_no_checkpoint_left_the_error_is_clear(
    finished_run: RunOutcome, tmp_path: Path, quiet_console: Console
) -> None:
    folder = copied_folder(finished_run.folder, tmp_path / "copy")
    for name in ("last", "previous"):
        (folder.checkpoints / name / STATE).write_text("{")
    with pytest.raises(CheckpointError, match="another --out"):
        newest_checkpoint(folder, quiet_console)


def test_another_number_of_threads_is_reported_and_put_back(
    finished_run: RunOutcome, small_recipe: MakeRecipe, quiet_console: Console
) -> None:
    found = newest_checkpoint(finished_run.folder, quiet_console)
    before = torch.get_num_threads()
    try:
        changed = replace(found, state=replace(found.state, threads=before + 1))
        distill_module.resumed_state(changed, small_recipe(), quiet_console)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert f"began with {before + 1} CPU threads" in quiet_console.file.getvalue()


def test_eight_accumulated_rows_are_one_batch_of_eight(
    small_recipe: MakeRecipe, tmp_path: Path, quiet_console: Console
) -> None:
    losses = []
    for name, batch_size, accumulation in (("whole", 8, 1), ("parts", 1, 8)):
        recipe = small_recipe(
            training={"batch_size": batch_size, "accumulation": accumulation, "steps": 4, "logging_interval": 1},
            objective={"cross_entropy_weight": 0.5},
        )
        folder = RunDirectory.create(tmp_path / name, "", {"recipe": name, "platform_kind": "local"})
        distill(recipe, folder, quiet_console)
        losses.append([line["loss_nats"] for line in folder.metrics() if "loss_nats" in line])
    # float32 sums in another order; after four steps of Adam they still agree to four digits.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_rows_that_break_the_run_are_skipped_and_counted(
    small_recipe: MakeRecipe, run_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, quiet_console: Console
) -> None:
    break_steps(monkeypatch, {3, 4})
    recipe = small_recipe()
    results = distill(recipe, run_folder(recipe), quiet_console).results
    assert results.counters.steps_skipped == 2
    assert results.counters.steps_done == 12
    assert results.counters.rolled_back == 0


def test_a_row_of_broken_steps_rolls_back_and_goes_on(
    small_recipe: MakeRecipe, run_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, quiet_console: Console
) -> None:
    break_steps(monkeypatch, set(range(6, 12)))
    recipe = small_recipe()
    results = distill(recipe, run_folder(recipe), quiet_console).results
    assert results.counters.rolled_back == 1
    assert results.counters.steps_done == 12


def test_a_run_that_stays_broken_stops_with_a_way_out(
    small_recipe: MakeRecipe, run_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, quiet_console: Console
) -> None:
    break_steps(monkeypatch, set(range(4, 1000)))
    recipe = small_recipe()
    with pytest.raises(TrainingDivergedError, match=r"lower training\.learning_rate"):
        distill(recipe, run_folder(recipe), quiet_console)


def test_early_stopping_stops_and_keeps_the_best(
    small_recipe: MakeRecipe, run_folder: MakeFolder, quiet_console: Console
) -> None:
    stopping = {"patience_steps": 4, "min_delta": 1e9}
    recipe = small_recipe(training={"early_stopping": stopping, "evaluation_interval": 2})
    results = distill(recipe, run_folder(recipe), quiet_console).results
    assert results.stop_reason == "early_stopping"
    assert results.counters.steps_done == 4
    assert results.perplexities.best == min(results.curves.perplexity.values)


def break_steps(monkeypatch: pytest.MonkeyPatch, broken: set[int]) -> None:
    """Make the loss of the given attempts NaN."""
    original, attempts = TrainingLoop._update, iter(range(10_000))

    def update(loop: TrainingLoop, means: torch.Tensor) -> None:
        if next(attempts) in broken:
            for parameter in loop.module.parameters():
                parameter.grad.fill_(float("nan"))
        original(loop, means)

    monkeypatch.setattr(TrainingLoop, "_update", update)


def copied_folder(folder: RunDirectory, target: Path) -> RunDirectory:
    """A copy of a run folder that a test may damage."""
    shutil.copytree(folder.path, target)
    return RunDirectory.open(target)


def test_a_student_that_takes_over_weights_comes_near_its_teacher(trained_run):
    results = trained_run.results
    untrained = results.curves.perplexity.values[0]
    assert results.ratio.to_teacher < 6.0
    assert results.student.perplexity < untrained / 5
    assert all(sample.teacher and sample.student for sample in results.samples)
    assert len(results.samples) == 3
