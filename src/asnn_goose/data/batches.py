"""Seeded batches whose only state is a count of rows, so that a run resumes exactly where it stopped.

Row number n belongs to epoch n // len(rows) and is the row at place n % len(rows) of that epoch's
permutation. Processes take consecutive pieces of this one sequence, so a restart with another number of
processes continues the same sequence.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from asnn_goose.data.tokens import TokenRows


@lru_cache(maxsize=2)
def epoch_permutation(rows: int, seed: int, epoch: int) -> Int64[np.ndarray, " rows"]:
    """The order in which an epoch visits its rows: a read-only permutation of 0 to rows - 1."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    # The two kept are the current epoch and the next, which a batch at the border reads both.
    permutation: Int64[np.ndarray, " rows"] = generator.permutation(np.arange(rows, dtype=np.int64))
    permutation.flags.writeable = False
    return permutation


@dataclass(frozen=True)
class BatchPlan:
    """Which rows make up each batch of one process.

    Raises:
        ValueError: There are no rows, or `batch_size`, `processes` or `rank` is out of its range.
    """

    rows: TokenRows
    """Rows to draw from."""
    batch_size: int
    """Rows a batch of one process holds."""
    seed: int
    """Seed of every epoch's permutation."""
    processes: int = 1
    """Processes that share the sequence of rows."""
    rank: int = 0
    """Number of this process, from 0 to processes - 1."""

    def __post_init__(self) -> None:
        if len(self.rows) < 1:
            raise ValueError("rows must hold at least one row, got 0; see training_rows")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.rank < self.processes:
            raise ValueError(f"rank must be in [0, processes), got rank {self.rank} of {self.processes} processes")

    def batch(self, rows_seen: int) -> Int64[Tensor, "batch window"]:
        """This process's next batch after all processes together have taken `rows_seen` rows."""
        first = rows_seen + self.rank * self.batch_size
        epochs, places = np.divmod(np.arange(first, first + self.batch_size), len(self.rows))
        indices = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            indices[in_epoch] = epoch_permutation(len(self.rows), self.seed, int(epoch))[places[in_epoch]]
        return torch.from_numpy(self.rows.take(indices))

    def advance(self, rows_seen: int) -> int:
        """`rows_seen` after every process has taken one more batch."""
        return rows_seen + self.batch_size * self.processes
