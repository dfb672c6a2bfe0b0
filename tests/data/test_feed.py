import numpy as np
import pytest
import torch

from asnn_goose.data.batches import BatchPlan
from asnn_goose.data.feed import BatchFeed
from asnn_goose.data.tokens import TokenRows

CPU = torch.device("cpu")


@pytest.fixture
def plan():
    rows = TokenRows(np.arange(700, dtype=np.uint16), window=7, stride=7)
    return BatchPlan(rows, batch_size=3, seed=5, processes=2, rank=1)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [None, 0, 2])
def test_a_feed_gives_the_plans_batches_in_order_from_any_cursor(plan, workers):
    feed, cursor = BatchFeed(plan, 12, CPU, workers), 12
    for _ in range(20):
        found = feed.take()
        assert torch.equal(found.ids, plan.batch(cursor))
        assert found.numbers.tolist() == plan.row_numbers(cursor).tolist()
        cursor = plan.advance(cursor)
        assert feed.rows_seen == cursor


def test_a_feed_goes_on_over_the_borders_of_epochs(plan):
    feed = BatchFeed(plan, 0, CPU)
    taken = [feed.take() for _ in range(40)]
    assert torch.equal(taken[39].ids, plan.batch(39 * 6))


def test_a_feed_leaves_the_global_generator_alone(plan):
    before = torch.get_rng_state()
    BatchFeed(plan, 0, CPU).take()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_batches_arrive_on_the_gpu(plan):
    feed = BatchFeed(plan, 0, torch.device("cuda"))
    found = feed.take().ids
    assert found.is_cuda
    assert torch.equal(found.cpu(), plan.batch(0))
