from itertools import permutations

import pytest
import torch

from asnn_goose.errors import DataError
from asnn_goose.information.permutations import (
    check_enough_rows,
    count_arrangements,
    count_derangements,
    draw_derangements,
    group_sizes,
    least_rows,
)


def by_trying(rows: int) -> int:
    return sum(all(place != row for row, place in enumerate(order)) for order in permutations(range(rows)))


@pytest.mark.parametrize("rows", range(8))
def test_derangements_are_as_many_as_one_finds(rows: int) -> None:
    assert count_derangements(rows) == by_trying(rows)


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(0, []), (1, [1]), (4, [4]), (5, [5]), (6, [4, 2]), (7, [4, 3]), (8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2])],
)
def test_a_lone_row_joins_the_group_before_it(rows: int, sizes: list[int]) -> None:
    assert group_sizes(rows, 4) == sizes


def test_no_row_stands_in_its_own_place_and_each_stands_once() -> None:
    drawn = draw_derangements(6, 500, seed=0, group=0)
    assert drawn.shape == (500, 6)
    assert torch.equal(drawn.sort(dim=1).values, torch.arange(6).expand(500, 6))
    assert not (drawn == torch.arange(6)).any()


def test_all_derangements_are_equally_likely() -> None:
    drawn = draw_derangements(4, 9000, seed=1, group=0)
    _, counts = drawn.unique(dim=0, return_counts=True)
    # 9 of them, 1000 expected each with a deviation of 30.
    assert len(counts) == 9
    assert int((counts - 1000).abs().max()) < 150


def test_seed_and_group_alone_say_what_is_drawn() -> None:
    first = draw_derangements(8, 20, seed=3, group=5)
    assert torch.equal(first, draw_derangements(8, 20, seed=3, group=5))
    assert not torch.equal(first, draw_derangements(8, 20, seed=3, group=6))
    assert not torch.equal(first, draw_derangements(8, 20, seed=4, group=5))


@pytest.mark.parametrize(("rows", "arrangements"), [(0, 0), (1, 0), (2, 1), (4, 9), (6, 9), (7, 18), (9, 9 * 44)])
def test_groups_multiply_the_arrangements(rows: int, arrangements: int) -> None:
    assert count_arrangements(rows, 4) == arrangements


@pytest.mark.parametrize(("wanted", "permuted_rows"), [(1, 3), (19, 4), (199, 4), (199, 16), (999, 5)])
def test_from_the_least_rows_on_there_are_always_enough(wanted: int, permuted_rows: int) -> None:
    least = least_rows(wanted, permuted_rows)
    assert all(count_arrangements(rows, permuted_rows) >= wanted for rows in range(least, least + 60))
    assert count_arrangements(least - 1, permuted_rows) < wanted


def test_too_little_text_is_refused_with_what_is_needed() -> None:
    check_enough_rows(6, 199, 16)
    with pytest.raises(DataError, match=r"199 permutations: 5 rows, at least 6 are needed"):
        check_enough_rows(5, 199, 16)


def test_groups_of_two_and_single_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="permuted_rows must be at least 3, got 2"):
        group_sizes(10, 2)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        draw_derangements(1, 5, seed=0, group=0)
