"""Batches ahead of time: made by worker processes, pinned, and on their way to the GPU while the step before runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from asnn_goose.data.batches import BatchPlan

GPU_WORKERS = 2
"""Workers where a GPU trains and the recipe does not say: one batch is being made while another waits."""


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """A plan's batches by the rows that were taken before them."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan

    def __getitem__(self, rows_seen: int) -> tuple[Int64[Tensor, "batch window"], Int64[Tensor, " batch"]]:
        """The batch, and its rows' numbers."""
        return self.plan.batch(rows_seen), torch.from_numpy(self.plan.row_numbers(rows_seen))


@dataclass(frozen=True)
class _Cursors:
    """Every value the cursor takes from one on, without end: a stage may need more batches than its budget has."""

    plan: BatchPlan
    rows_seen: int

    def __iter__(self) -> Iterator[int]:
        """The values, in order."""
        cursor = self.rows_seen
        while True:
            yield cursor
            cursor = self.plan.advance(cursor)


class Batch(NamedTuple):
    """Rows to train on: their tokens, on the device, and their numbers among all rows, on the host."""

    ids: Int64[Tensor, "batch window"]
    numbers: Int64[np.ndarray, " batch"]


class BatchFeed:
    """The batches of a plan, in order, on a device.

    There is one endless pass over the data, so its workers live as long as the feed.

    Args:
        plan: Which rows make up each batch.
        rows_seen: Rows that all processes together have taken before.
        device: Where the batches go.
        workers: Processes that make batches; None is `GPU_WORKERS` for a GPU and none for a CPU, whose
            cores have better to do.
        ahead: Batches each worker makes ahead.
    """

    def __init__(
        self, plan: BatchPlan, rows_seen: int, device: torch.device, workers: int | None = None, ahead: int = 2
    ) -> None:
        on_gpu = device.type == "cuda"
        count = workers if workers is not None else GPU_WORKERS if on_gpu else 0
        self.plan, self.device, self.rows_seen = plan, device, rows_seen
        loader = DataLoader(
            _Batches(plan), batch_size=None, sampler=_Cursors(plan, rows_seen), num_workers=count,
            prefetch_factor=ahead if count else None, pin_memory=on_gpu,
            # The loader draws a seed for its workers, which must not come from the run's own generator.
            generator=torch.Generator(),
        )  # fmt: skip
        self._batches = iter(loader)

    def take(self) -> Batch:
        """The next batch, its copy to the device under way; `rows_seen` moves on."""
        ids, numbers = next(self._batches)
        self.rows_seen = self.plan.advance(self.rows_seen)
        return Batch(ids.to(self.device, non_blocking=True), numbers.numpy())
