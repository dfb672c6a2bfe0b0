from collections.abc import Callable

import pytest
import torch

from asnn_goose.information.joint_counts import JointCounts, PermutedCounts, TableSizes, one_hot
from asnn_goose.information.mutual_information import mutual_information_bits
from asnn_goose.information.permutations import draw_derangements, group_sizes
from asnn_goose.information.significance import compare_with_null

SIZES = TableSizes(channels=2, targets=3, first_codes=3, second_codes=4)


def codes(rows: int, time: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return (
        torch.randint(3, (rows, time, 2), generator=generator),
        torch.randint(4, (rows, time, 3), generator=generator),
    )


def tables_by_counting(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """One token at a time."""
    found = torch.zeros(2, 3, 3, 4, dtype=torch.int64)
    for some, other in zip(first.flatten(0, -2).tolist(), second.flatten(0, -2).tolist(), strict=True):
        for channel, code in enumerate(some):
            for target, other_code in enumerate(other):
                found[channel, target, code, other_code] += 1
    return found


def permuted(rows: int, batches: list[int], seed: int = 7) -> torch.Tensor:
    counts = PermutedCounts(SIZES, permutations=6, permuted_rows=4, seed=seed)
    first, second = codes(rows)
    for some, other in zip(first.split(batches), second.split(batches), strict=True):
        counts.add(some, other)
    assert counts.rows == rows
    return counts.tables()


def test_tables_are_what_counting_gives() -> None:
    first, second = codes(4)
    counts = JointCounts(SIZES)
    counts.add(first, second)
    assert torch.equal(counts.tables(), tables_by_counting(first, second))
    assert counts.tokens == 20


def test_small_integers_count_as_large_ones_do() -> None:
    first, second = codes(4)
    counts = JointCounts(SIZES)
    counts.add(first.to(torch.int8), second.to(torch.uint8).to(torch.int32))
    assert torch.equal(counts.tables(), tables_by_counting(first, second))


def test_columns_made_once_count_as_codes_do() -> None:
    first, second = codes(4)
    counts, columns = JointCounts(SIZES), one_hot(first, 3)
    assert columns.shape == (4, 5, 6)
    counts.add_columns(columns[:, 1:], one_hot(second, 4)[:, :-1])
    assert torch.equal(counts.tables(), tables_by_counting(first[:, 1:], second[:, :-1]))
    assert counts.tokens == 16


def test_batches_change_no_table() -> None:
    first, second = codes(6)
    counts = JointCounts(SIZES)
    for some, other in zip(first.split([1, 3, 2]), second.split([1, 3, 2]), strict=True):
        counts.add(some, other)
    assert torch.equal(counts.tables(), tables_by_counting(first, second))


def test_more_tokens_than_a_chunk_are_counted_exactly() -> None:
    counts = JointCounts(TableSizes(1, 1, 1, 2))
    counts.add(torch.zeros(100_001, 1, dtype=torch.int8), torch.ones(100_001, 1, dtype=torch.int8))
    assert counts.tables().flatten().tolist() == [0, 100_001]


def test_returned_tables_do_not_follow_later_tokens() -> None:
    counts = JointCounts(TableSizes(1, 1, 1, 1))
    one = torch.zeros(1, 1, dtype=torch.int64)
    counts.add(one, one)
    before = counts.tables()
    counts.add(one, one)
    assert before.item() == 1


@pytest.mark.parametrize("rows", [2, 4, 5, 6, 9, 11])
def test_permuted_tables_are_those_of_permuted_rows(rows: int) -> None:
    first, second = codes(rows)
    orders, start = [], 0
    for group, size in enumerate(group_sizes(rows, 4)):
        orders.append(draw_derangements(size, 6, 7, group) + start)
        start += size
    expected = [tables_by_counting(first, second[order]) for order in torch.cat(orders, dim=1)]
    assert torch.equal(permuted(rows, [rows]), torch.stack(expected))


@pytest.mark.parametrize("batches", [[1] * 11, [2, 9], [5, 5, 1], [10, 1], [3, 3, 3, 2]])
def test_batches_change_no_permuted_table(batches: list[int]) -> None:
    assert torch.equal(permuted(11, batches), permuted(11, [11]))


def test_more_tokens_than_float32_counts_change_no_permuted_table(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = permuted(23, [23])
    monkeypatch.setattr("asnn_goose.information.joint_counts.EXACT_TOKENS", 2 * 4 * codes(1)[0].shape[1])
    added = []
    monkeypatch.setattr(torch.Tensor, "zero_", lambda counts: added.append(counts.sum()) or counts.fill_(0))
    assert torch.equal(permuted(23, [23]), expected)
    assert len(added) == 2


def test_another_seed_permutes_otherwise() -> None:
    assert not torch.equal(permuted(11, [11]), permuted(11, [11], seed=8))


def test_a_look_at_the_tables_changes_nothing() -> None:
    counts = PermutedCounts(SIZES, permutations=6, permuted_rows=4, seed=7)
    first, second = codes(11)
    for row in range(11):
        counts.add(first[row : row + 1], second[row : row + 1])
        if row:
            counts.tables()
    assert torch.equal(counts.tables(), permuted(11, [11]))


def test_no_row_meets_itself() -> None:
    # Row r holds code r alone, so a fixed point would count on the diagonal.
    own = torch.arange(5).reshape(5, 1, 1)
    counts = PermutedCounts(TableSizes(1, 1, 5, 5), permutations=50, permuted_rows=5, seed=0)
    counts.add(own, own)
    tables = counts.tables()[:, 0, 0]
    assert not tables.diagonal(dim1=1, dim2=2).any()
    assert bool((tables.sum(dim=1) == 1).all())


@pytest.mark.parametrize("shared", [False, True])
def test_only_rows_that_share_something_beat_the_null(shared: bool) -> None:
    # Each row holds one value throughout: 48 independent draws, though there are 3072 tokens.
    generator = torch.Generator().manual_seed(0)
    first, other = torch.randint(2, (2, 48, 1, 1), generator=generator).expand(2, 48, 64, 1)
    second = first if shared else other
    joint, null = JointCounts(TableSizes(1, 1, 2, 2)), PermutedCounts(TableSizes(1, 1, 2, 2), 199, 16, seed=0)
    joint.add(first, second)
    null.add(first, second)
    observed, chance = mutual_information_bits(joint.tables()), mutual_information_bits(null.tables())
    p = compare_with_null(float(observed), chance.flatten()).p
    assert p == 1 / 200 if shared else p > 0.1


def test_memory_does_not_grow_with_rows(state_size: Callable[[object], int]) -> None:
    joint, permuted_counts = JointCounts(SIZES), PermutedCounts(SIZES, permutations=6, permuted_rows=4, seed=0)
    sizes = []
    for _ in range(5):
        for counts in (joint, permuted_counts):
            counts.add(*codes(8))
        sizes.append(state_size(joint) + state_size(permuted_counts))
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("code", [-1, 3])
def test_codes_out_of_range_are_refused(code: int) -> None:
    first, second = codes(4)
    first[0, 0, 0] = code
    with pytest.raises(ValueError, match="codes must be 0 to 2"):
        JointCounts(SIZES).add(first, second)


def test_too_few_rows_are_refused() -> None:
    counts = PermutedCounts(SIZES, permutations=6, permuted_rows=4, seed=0)
    with pytest.raises(ValueError, match="at least 2 are needed, got 0"):
        counts.tables()
    counts.add(*codes(1))
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        counts.tables()
    with pytest.raises(ValueError, match="permuted_rows must be at least 3"):
        PermutedCounts(SIZES, permutations=6, permuted_rows=2, seed=0)
