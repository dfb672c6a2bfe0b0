import threading
from functools import partial

import pytest
import torch

from asnn_goose.information.side_by_side import MOST_AT_ONCE, side_by_side, tasks_at_once

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3, 20])
def threads(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(autouse=True)
def torch_threads(threads: int) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_tasks() -> None:
    assert side_by_side([partial(int, number) for number in range(50)], CPU) == list(range(50))
    assert side_by_side([], CPU) == []


def test_tasks_share_the_threads_and_give_them_back(threads: int) -> None:
    found = side_by_side([torch.get_num_threads] * 5, CPU)
    assert set(found) == {threads // min(threads, MOST_AT_ONCE, 5)}
    assert torch.get_num_threads() == threads
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads]


def test_as_many_run_at_once_as_is_said(threads: int) -> None:
    lanes = tasks_at_once(CPU)
    assert lanes == min(threads, MOST_AT_ONCE)
    meeting = threading.Barrier(lanes, timeout=30)
    assert len(side_by_side([meeting.wait] * (2 * lanes), CPU)) == 2 * lanes


def test_a_task_that_is_alone_has_all_threads(threads: int) -> None:
    assert side_by_side([torch.get_num_threads], CPU) == [threads]


def test_elsewhere_one_task_follows_the_other_where_it_was_called() -> None:
    assert tasks_at_once(torch.device("cuda")) == 1
    assert side_by_side([threading.get_ident], torch.device("cuda")) == [threading.get_ident()]


def test_a_tasks_error_is_raised_and_the_threads_are_given_back(threads: int) -> None:
    with pytest.raises(ValueError, match="not this"):
        side_by_side([partial(int, 1), partial(fail, "not this"), partial(int, 2)], CPU)
    assert torch.get_num_threads() == threads


def fail(reason: str) -> int:
    raise ValueError(reason)
