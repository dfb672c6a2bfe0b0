"""Independent tasks next to each other on the CPU, each with its share of torch's threads.

Most steps of an estimate are too small to be worth a second thread, and each that is split waits for its slowest part;
whole tasks wait for nothing. What a task computes on its own does not depend on how many run beside it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Found = TypeVar("Found")
MOST_AT_ONCE = 8
"""Tasks at once, each of which holds what it computes on the way."""


def tasks_at_once(device: torch.device) -> int:
    """How many tasks run next to each other at most: on a CPU one for each of torch's threads up to 8; else one."""
    return min(MOST_AT_ONCE, torch.get_num_threads()) if device.type == "cpu" else 1


def side_by_side(tasks: Sequence[Callable[[], Found]], device: torch.device) -> list[Found]:
    """What the tasks return, in their order, without gradients.

    No task may change what another one reads or changes. An error of a task is raised once all that have begun are
    done.
    """
    # A task that is alone has all threads.
    threads, lanes = torch.get_num_threads(), min(tasks_at_once(device), len(tasks))
    if lanes <= 1:
        return one_by_one(tasks)
    try:
        with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(threads // lanes,)) as pool:
            return list(pool.map(_without_gradients, tasks))
    finally:
        # Threads that start later take the number that was set last, by whichever thread.
        torch.set_num_threads(threads)


def one_by_one(tasks: Sequence[Callable[[], Found]]) -> list[Found]:
    """The same by all threads together, for tasks that may not run beside each other."""
    return [_without_gradients(task) for task in tasks]


def _without_gradients(task: Callable[[], Found]) -> Found:
    # Torch keeps for each thread whether gradients are taken.
    with torch.no_grad():
        return task()
