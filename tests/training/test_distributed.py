import json

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import AdamW

from asnn_goose.config import Recipe
from asnn_goose.errors import CheckpointError, ConfigError
from asnn_goose.training.checkpoint import load_checkpoint
from asnn_goose.training.distill import distill
from asnn_goose.training.distributed import (
    ProcessStep,
    check_launch,
    decided_by_main,
    from_main,
    main_console,
    on_any,
    spread_over,
)
from asnn_goose.training.stages import plan_stages

STEPS, ROWS_PER_STEP, STOPPED_AT = 8, 8, 4
# float32: where rows are summed over processes the order of sums is another, and Adam's first steps enlarge that.
SUMMED_ELSEWHERE = 1e-4


def test_two_processes_learn_what_one_learns_from_twice_as_many_micro_batches(process_pair):
    for name in ("loss_nats", "gradient_norm", "evaluation_perplexity"):
        expected = process_pair.figures("alone", name)
        assert process_pair.figures("replicated", name) == pytest.approx(expected, rel=SUMMED_ELSEWHERE)
    assert len(process_pair.figures("alone", "loss_nats")) == STEPS // 2


@pytest.mark.parametrize("job", ["replicated", "sharded", "stopped", "stopped sharded", "taken over"])
def test_two_processes_share_one_temperature_that_learns_from_the_rows_of_both(process_pair, job):
    for name in ("temperature", "temperature_gradient"):
        expected = process_pair.figures("alone", name)
        assert process_pair.figures(job, name) == pytest.approx(expected, rel=SUMMED_ELSEWHERE)
    assert process_pair.figures("alone", "temperature")[-1] != pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("job", ["replicated", "sharded"])
def test_two_processes_take_the_rows_of_one_without_repeats(process_pair, job):
    rows = process_pair.rows(job)
    assert rows == process_pair.rows_alone("alone")
    assert len(set(rows)) == STEPS * ROWS_PER_STEP


@pytest.mark.parametrize("job", ["stopped", "stopped sharded"])
def test_a_stop_that_one_process_is_asked_for_stops_both_at_the_same_step(process_pair, job):
    assert [found["ended"] for found in process_pair.found(job)] == [False, False]
    assert process_pair.rows(job) == process_pair.rows_alone("alone")[: STOPPED_AT * ROWS_PER_STEP]


@pytest.mark.parametrize("job", ["stopped", "stopped sharded"])
def test_one_process_goes_on_from_where_two_were_stopped(process_pair, job):
    taken = process_pair.rows(job) + process_pair.rows_alone(job)
    assert taken == process_pair.rows_alone("alone")
    for name in ("loss_nats", "evaluation_perplexity"):
        expected = process_pair.figures("alone", name)
        assert process_pair.figures(job, name) == pytest.approx(expected, rel=SUMMED_ELSEWHERE)


def test_two_processes_go_on_from_where_one_was_stopped(process_pair):
    assert process_pair.rows("taken over") == process_pair.rows_alone("alone")[STOPPED_AT * ROWS_PER_STEP :]
    for name in ("loss_nats", "evaluation_perplexity"):
        expected = process_pair.figures("alone", name)
        assert process_pair.figures("taken over", name) == pytest.approx(expected, rel=SUMMED_ELSEWHERE)


def test_a_loss_that_is_lost_on_one_process_is_skipped_by_both(process_pair):
    assert [found["skipped"] for found in process_pair.found("lost")] == [1, 1]
    assert process_pair.run("lost").read_results().counters.steps_done == STEPS


@pytest.mark.parametrize(
    "job", ["replicated", "sharded", "stopped", "stopped sharded", "taken over", "staged", "from easy to hard"]
)
def test_only_the_main_process_writes_and_speaks(process_pair, job):
    main, other = process_pair.found(job)
    assert main["written"]
    assert "evaluation perplexity" in main["said"]
    assert other["written"] == []
    assert other["said"] == ""


def test_two_processes_open_the_rows_of_one_from_easy_to_hard(process_pair):
    orders = [
        json.loads((process_pair.run(name).path / "curriculum.json").read_text())
        for name in ("from easy to hard", "easy to hard alone")
    ]
    assert orders[0].keys() == orders[1].keys()
    for key, found in orders[0].items():
        assert found == pytest.approx(orders[1][key], rel=SUMMED_ELSEWHERE)
    for name in ("loss_nats", "evaluation_perplexity"):
        expected = process_pair.figures("easy to hard alone", name)
        assert process_pair.figures("from easy to hard", name) == pytest.approx(expected, rel=SUMMED_ELSEWHERE)
    # Not what a run without a curriculum learns.
    assert expected != pytest.approx(process_pair.figures("alone", name), rel=SUMMED_ELSEWHERE)


def test_what_the_main_process_decides_or_fails_at_reaches_all(process_pair):
    for found in process_pair.found("shards of goose"):
        assert found["decided"] == [0, "rank 0 cannot"]
        assert found["on any"] == [True, False]


def test_alone_a_process_agrees_with_itself(quiet_console):
    value = object()
    assert from_main(value) is value
    assert decided_by_main(lambda: value) is value
    assert main_console(quiet_console) is quiet_console
    assert [on_any(flag, None) for flag in (True, False)] == [True, False]


@pytest.mark.parametrize(("processes", "batch_size", "accumulation"), [(1, 4, 6), (2, 4, 3), (3, 4, 2), (8, 3, 1)])
def test_a_step_takes_the_same_rows_on_any_number_of_processes(small_recipe, processes, batch_size, accumulation):
    plan = plan_stages(small_recipe(training={"batch_size": 4, "accumulation": 3}), 2)[0]
    spread = spread_over(plan, processes)
    assert (spread.batch_size, spread.accumulation, spread.processes) == (batch_size, accumulation, processes)
    assert (spread.rows_per_step, spread.steps) == (plan.rows_per_step, plan.steps)


def test_rows_that_cannot_be_shared_evenly_are_refused(small_recipe):
    with pytest.raises(CheckpointError, match="8 rows, which 3 processes"):
        spread_over(plan_stages(small_recipe(), 2)[0], 3)


def test_a_launch_that_shards_by_itself_is_refused():
    class Launched:
        class distributed_type:  # noqa: N801
            value = "FSDP"

    with pytest.raises(ConfigError, match=r"training\.sharding=fsdp2"):
        check_launch(Launched)


def test_a_process_that_is_alone_stops_at_once(small_recipe, run_folder, process_pair, quiet_console):
    recipe = small_recipe(training={"logging_interval": 100, "checkpoint_interval": 100, "evaluation_interval": 100})
    with process_pair.script.signalled_at(4):
        outcome = distill(recipe, run_folder(recipe), quiet_console)
    assert outcome.results is None
    assert load_checkpoint(outcome.folder.checkpoints / "last").state.step == 5


def test_micro_batches_that_are_replayed_teach_all_processes_what_a_whole_batch_teaches_one(process_pair):
    for found in process_pair.found("replays"):
        # float64 sums in another order.
        assert found["norm"] < 1e-9
        assert found["step"] < 1e-9
        assert found["left"] == 0


def test_a_stage_begins_without_the_gradients_of_the_one_before():
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    ProcessStep(Accelerator(cpu=True), layer, AdamW(layer.parameters()), None)
    assert layer.weight.grad is None


def test_replays_of_a_sharded_student_are_a_mistake():
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="those of a sharded student move"):
        ProcessStep(Accelerator(cpu=True), layer, AdamW(layer.parameters()), layer, replays=True)


@pytest.mark.gpu
def test_two_replayed_stages_learn_what_two_written_ones_learn(small_recipe, run_folder, quiet_console):
    """With evaluations and checkpoints in between, and the second stage's weights partly held in the first."""
    stages = [{"kind": "align", "share": 1, "train": "new"}, {"kind": "distill", "share": 2}]
    found = []
    for replayed in (False, True):
        training = {"steps": 30, "window": 32, "precision": "fp32", "cuda_graphs": replayed, "evaluation_interval": 10}
        made = small_recipe(training=training).model_dump(mode="json")
        recipe = Recipe.model_validate({**made, "student": {"mixer": "goose"}, "stages": stages}, strict=False)
        folder = run_folder(recipe)
        distill(recipe, folder, quiet_console)
        keys = ("loss_nats", "evaluation_perplexity")
        found.append([line[key] for line in folder.metrics() for key in keys if key in line])
        folder.path.rename(folder.path.with_name(f"replayed {replayed}"))
    # float32 sums in another order, over 30 steps that depend on each other.
    assert found[1] == pytest.approx(found[0], rel=1e-2)
