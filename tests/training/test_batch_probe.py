import dataclasses

import pytest
import torch

from asnn_goose.config_training import DistillStage
from asnn_goose.training.batch_probe import CPU_BATCH, fitting_batch, resolve_batch_size, rounded_batch, with_batch_size
from asnn_goose.training.distill import distill


class Machine:
    """A step takes `fixed` bytes and `row` bytes a row; above `memory` it fails."""

    def __init__(self, fixed=1000, row=100, memory=10**9, bend=0):
        self.fixed, self.row, self.memory, self.bend, self.tried = fixed, row, memory, bend, []

    def peak(self, rows):
        self.tried.append(rows)
        peak = self.fixed + self.row * rows + (self.bend if rows > 3 else 0)
        if peak > self.memory:
            raise torch.OutOfMemoryError("no room")
        return peak


@pytest.mark.parametrize(("room", "expected"), [(2_700, 16), (2_599, 8), (1_799, 4), (1_799 - 400, 2), (1_250, 2)])
def test_the_largest_batch_that_fits_is_found_in_three_tries(room, expected):
    machine = Machine()
    assert fitting_batch(machine.peak, room, most=1000) == expected
    assert len(machine.tried) <= 3


def test_more_rows_than_pay_are_not_taken():
    assert fitting_batch(Machine().peak, 10**9, most=100) == 96


def test_a_peak_that_bends_upwards_is_met_by_smaller_batches():
    machine = Machine(bend=2_000)
    found = fitting_batch(machine.peak, 8_000, most=1000)
    assert machine.peak(found) <= 8_000
    assert found >= 40


def test_a_batch_that_fails_is_made_smaller():
    machine = Machine(memory=5_000)
    assert 24 <= fitting_batch(machine.peak, 10**9, most=100) <= 40


def test_where_only_one_row_fits_it_is_one():
    assert fitting_batch(Machine(memory=1_150).peak, 1_150, most=100) == 1


def test_where_not_even_one_row_fits_the_machine_says_so():
    with pytest.raises(torch.OutOfMemoryError):
        fitting_batch(Machine(memory=10).peak, 10, most=100)


def test_batches_are_multiples_of_eight_or_powers_of_two():
    assert [rounded_batch(rows) for rows in (0, 1, 3, 7, 8, 15, 31)] == [1, 1, 2, 4, 8, 8, 24]


def auto(recipe):
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"batch_size": "auto"})})


def test_stages_hold_as_many_tokens_unless_they_say_otherwise(small_recipe):
    stages = [DistillStage(share=1.0), DistillStage(share=1.0, window=64), DistillStage(share=1.0, batch_size=5)]
    recipe = auto(small_recipe()).model_copy(update={"stages": tuple(stages)})
    window = recipe.training.window
    found = with_batch_size(recipe, 8)
    assert found.training.rows == 8
    assert [stage.batch_size for stage in found.stages] == [8, 8 * window // 64, 5]


def test_a_batch_that_is_not_resolved_is_no_number(small_recipe):
    with pytest.raises(ValueError, match="not been resolved"):
        _ = auto(small_recipe()).training.rows


def test_a_number_of_rows_stays_as_it_is(small_recipe):
    recipe = small_recipe()
    assert resolve_batch_size(recipe, None, None, None, None) is recipe


def test_a_cpu_takes_a_few_rows_and_a_later_process_those_that_it_finds(small_recipe, run_folder, quiet_console):
    recipe = auto(small_recipe())
    folder = run_folder(recipe)
    outcome = distill(recipe, folder, quiet_console)
    lines = [line for line in folder.metrics() if "batch_size" in line]
    assert [line["batch_size"] for line in lines] == [CPU_BATCH]
    assert outcome.results.hardware.tokens == recipe.training.steps * CPU_BATCH * recipe.training.window
    folder.cut_metrics(-1)
    folder.append_metrics(step=0, batch_size=3)
    material = dataclasses.make_dataclass("Material", ["folder"])(folder)
    assert resolve_batch_size(recipe, material, None, None, None).training.rows == 3
