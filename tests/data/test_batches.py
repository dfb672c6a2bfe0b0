import numpy as np
import pytest
import torch

from asnn_goose.data.batches import BatchPlan
from asnn_goose.data.curriculum import Course, Phase
from asnn_goose.data.mixture import MixedRows
from asnn_goose.data.tokens import TokenRows

ROWS = 13


@pytest.fixture
def rows() -> TokenRows:
    return TokenRows(tokens=np.repeat(np.arange(ROWS, dtype=np.uint16), 4), window=4, stride=4)


def rows_taken(plan: BatchPlan, batches: int, rows_seen: int = 0) -> list[int]:
    taken: list[int] = []
    for _ in range(batches):
        taken += plan.batch(rows_seen)[:, 0].tolist()
        rows_seen = plan.advance(rows_seen)
    return taken


def test_batch_is_int64_rows_of_the_window(rows: TokenRows) -> None:
    batch = BatchPlan(rows, batch_size=3, seed=0).batch(0)
    assert (batch.dtype, batch.shape) == (torch.int64, (3, 4))


def test_epoch_visits_every_row_once(rows: TokenRows) -> None:
    assert sorted(rows_taken(BatchPlan(rows, batch_size=1, seed=0), ROWS)) == list(range(ROWS))


def test_rows_come_in_the_order_of_numpys_permutation(rows: TokenRows) -> None:
    taken = rows_taken(BatchPlan(rows, batch_size=2, seed=7), ROWS)
    orders = [np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, epoch]))) for epoch in (0, 1)]
    assert taken == [row for order in orders for row in order.permutation(ROWS).tolist()]


@pytest.mark.parametrize(("processes", "batch_size"), [(1, 4), (2, 2), (4, 1)])
def test_a_course_opens_rows_at_steps_whatever_micro_batches_and_processes(
    rows: TokenRows, processes: int, batch_size: int
) -> None:
    course = Course(np.arange(ROWS)[::-1].copy(), (Phase(0, 0, 3), Phase(2, 3, 9)), seed=5, rows_per_step=8)
    plans = [BatchPlan(rows, batch_size, 0, processes, rank, course) for rank in range(processes)]
    steps = [[], [], [], []]
    for cursor in range(0, 32, 4):
        steps[cursor // 8] += torch.cat([plan.batch(cursor) for plan in plans])[:, 0].tolist()
    assert set(steps[0] + steps[1]) == {12, 11, 10}
    assert set(steps[2] + steps[3]) == {9, 8, 7, 6, 5, 4}
    alone = BatchPlan(rows, 32, 0, course=course).batch(0)[:, 0].tolist()
    assert [row for step in steps for row in step] == alone


def test_a_course_is_of_one_text(rows: TokenRows) -> None:
    course = Course(np.arange(ROWS), (Phase(0, 0, ROWS),), seed=0)
    with pytest.raises(ValueError, match="one text"):
        BatchPlan(MixedRows((rows, rows), (1.0, 1.0)), 2, 0, course=course)


@pytest.mark.parametrize("rows_seen", [2, 12, 14, 26 * 10**6])
def test_resumed_batches_are_those_of_a_run_that_never_stopped(rows: TokenRows, rows_seen: int) -> None:
    whole = rows_taken(BatchPlan(rows, batch_size=2, seed=1), 12, rows_seen)
    assert rows_taken(BatchPlan(rows, batch_size=2, seed=1), 7, rows_seen + 10) == whole[10:]


@pytest.mark.parametrize(("processes", "batch_size"), [(2, 6), (3, 4), (12, 1)])
def test_number_of_processes_leaves_the_global_batch_equal(rows: TokenRows, processes: int, batch_size: int) -> None:
    alone = BatchPlan(rows, batch_size=12, seed=1)
    shared = [BatchPlan(rows, batch_size, 1, processes, rank) for rank in range(processes)]
    for rows_seen in (0, 12, 24, 7):
        assert torch.equal(torch.cat([plan.batch(rows_seen) for plan in shared]), alone.batch(rows_seen))
        assert {plan.advance(rows_seen) for plan in shared} == {alone.advance(rows_seen)}


def test_ranks_share_no_row_within_an_epoch(rows: TokenRows) -> None:
    plans = [BatchPlan(rows, batch_size=2, seed=1, processes=3, rank=rank) for rank in range(3)]
    taken = [row for plan in plans for row in rows_taken(plan, 2)]
    assert len(set(taken)) == len(taken) == 12


def test_batch_larger_than_an_epoch_goes_on_into_the_next(rows: TokenRows) -> None:
    taken = rows_taken(BatchPlan(rows, batch_size=3 * ROWS, seed=0), 1)
    assert [sorted(taken[start : start + ROWS]) for start in (0, ROWS, 2 * ROWS)] == [list(range(ROWS))] * 3


@pytest.mark.parametrize(
    "changed", [{"batch_size": 0}, {"rank": 2}, {"rank": -1}, {"processes": 0}, {"rows": TokenRows(np.arange(3), 4, 4)}]
)
def test_plan_that_cannot_be_is_refused(rows: TokenRows, changed: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must (be|hold)"):
        BatchPlan(**{"rows": rows, "batch_size": 1, "seed": 0, "processes": 2, "rank": 0, **changed})


@pytest.fixture
def mixture(rows: TokenRows) -> MixedRows:
    """Rows of 0 to 12, of 100 to 106 and of 200 to 299."""
    other, large = (
        TokenRows(tokens=np.repeat(np.arange(first, last, dtype=np.uint16), 4), window=4, stride=4)
        for first, last in ((100, 107), (200, 300))
    )
    return MixedRows((rows, other, large), (0.5, 0.3, 0.2))


@pytest.mark.parametrize("rows_seen", [0, 993, 3 * 10**9])
def test_a_mixture_resumed_anywhere_gives_the_rows_of_a_run_that_never_stopped(
    mixture: MixedRows, rows_seen: int
) -> None:
    whole = rows_taken(BatchPlan(mixture, batch_size=7, seed=1), 4, rows_seen)
    parts = [rows_taken(BatchPlan(mixture, batch_size=1, seed=1), 1, rows_seen + place)[0] for place in range(28)]
    assert parts == whole


@pytest.mark.parametrize(("processes", "batch_size"), [(2, 6), (3, 4)])
def test_processes_together_give_the_rows_of_a_mixture_that_one_gives(
    mixture: MixedRows, processes: int, batch_size: int
) -> None:
    alone = BatchPlan(mixture, batch_size=12, seed=1)
    shared = [BatchPlan(mixture, batch_size, 1, processes, rank) for rank in range(processes)]
    for rows_seen in (0, 995, 7):
        assert torch.equal(torch.cat([plan.batch(rows_seen) for plan in shared]), alone.batch(rows_seen))


def test_an_epoch_of_a_part_visits_each_of_its_rows_once(mixture: MixedRows) -> None:
    taken = rows_taken(BatchPlan(mixture, batch_size=10, seed=3), 100)
    for part, first in zip(mixture.parts, (0, 100, 200), strict=True):
        own = [row for row in taken if first <= row < first + 100]
        epochs = [own[start : start + len(part)] for start in range(0, len(own) - len(part) + 1, len(part))]
        assert len(epochs) >= 2
        assert all(sorted(epoch) == list(range(first, first + len(part))) for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_parts_of_one_size_do_not_go_in_step(rows: TokenRows) -> None:
    other = TokenRows(rows.tokens + 100, 4, 4)
    taken = rows_taken(BatchPlan(MixedRows((rows, other), (1.0, 1.0)), batch_size=4, seed=0), 20)
    orders = [[row - first for row in taken if first <= row < first + 100][:ROWS] for first in (0, 100)]
    assert orders[0] != orders[1]


def test_a_batch_is_its_numbered_rows():
    parts = tuple(TokenRows(np.arange(start, start + 40, dtype=np.uint16), 4, 4) for start in (0, 100, 200))
    plan = BatchPlan(MixedRows(parts, (1.0, 2.0, 1.0)), batch_size=8, seed=3)
    every_row = np.concatenate([part.take(np.arange(len(part))) for part in parts])
    for cursor in (0, 8, 64):
        assert plan.batch(cursor).tolist() == every_row[plan.row_numbers(cursor)].tolist()
    single = BatchPlan(parts[1], batch_size=3, seed=3, processes=2, rank=1)
    assert single.batch(6).tolist() == parts[1].take(single.row_numbers(6)).tolist()
