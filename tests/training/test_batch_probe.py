import pytest
import torch

from asnn_goose.training.batch_probe import fitting_batch, rounded_batch


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
