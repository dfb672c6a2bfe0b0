"""Seeded batches whose only state is a count of rows, so that a run resumes exactly where it stopped.

Row number n of one text belongs to epoch n // len(rows) and is the row at place n % len(rows) of that epoch's
permutation. In a mixture row n is of a part, and the part's own count stands in the place of n. Processes
take consecutive pieces of this one sequence, so a restart with another number of processes continues the
same sequence.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from asnn_goose.data.mixture import MixedRows, part_seed
from asnn_goose.data.tokens import TokenRows


@lru_cache(maxsize=16)
def epoch_permutation(rows: int, seed: int, epoch: int) -> Int64[np.ndarray, " rows"]:
    """The order in which an epoch visits its rows: a read-only permutation of 0 to rows - 1."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    # Kept are the current epoch of each part of a mixture and the next, which a batch at the border reads both.
    permutation: Int64[np.ndarray, " rows"] = generator.permutation(np.arange(rows, dtype=np.int64))
    permutation.flags.writeable = False
    return permutation


def shuffled_rows(
    rows: TokenRows, numbers: Int64[np.ndarray, " numbers"], seed: int
) -> Int64[np.ndarray, "numbers window"]:
    """The rows with these numbers in the endless sequence of a text's permuted epochs."""
    epochs, places = np.divmod(numbers, len(rows))
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        indices[in_epoch] = epoch_permutation(len(rows), seed, int(epoch))[places[in_epoch]]
    return rows.take(indices)


@dataclass(frozen=True)
class BatchPlan:
    """Which rows make up each batch of one process.

    Raises:
        ValueError: There are no rows, or `batch_size`, `processes` or `rank` is out of its range.
    """

    rows: TokenRows | MixedRows
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
        numbers = np.arange(first, first + self.batch_size, dtype=np.int64)
        if isinstance(self.rows, TokenRows):
            return torch.from_numpy(shuffled_rows(self.rows, numbers, self.seed))
        batch = np.empty((self.batch_size, self.rows.window), dtype=np.int64)
        parts, earlier = self.rows.assign(numbers, self.seed)
        for part in np.unique(parts).tolist():
            of_part = parts == part
            seed = part_seed(self.seed, part)
            batch[of_part] = shuffled_rows(self.rows.parts[part], earlier[of_part], seed)
        return torch.from_numpy(batch)

    def advance(self, rows_seen: int) -> int:
        """`rows_seen` after every process has taken one more batch."""
        return rows_seen + self.batch_size * self.processes
