"""Seeded batches whose only state is a count of rows, so that a run resumes exactly where it stopped.

Row number n of one text belongs to epoch n // len(rows) and is the row at place n % len(rows) of that epoch's
permutation. In a mixture row n is of a part, and the part's own count stands in the place of n. Processes
take consecutive pieces of this one sequence, so a restart with another number of processes continues the
same sequence.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int64
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


def shuffled_places(rows: int, numbers: Int64[np.ndarray, " numbers"], seed: int) -> Int64[np.ndarray, " numbers"]:
    """The rows, by their place in a text of `rows`, with these numbers in the endless sequence of its epochs."""
    epochs, places = np.divmod(numbers, rows)
    found = np.empty_like(places)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        found[in_epoch] = epoch_permutation(rows, seed, int(epoch))[places[in_epoch]]
    return found


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
        batch = np.empty((self.batch_size, self.rows.window), dtype=np.int64)
        for part, of_part, places in self._choice(rows_seen):
            rows = self.rows if isinstance(self.rows, TokenRows) else self.rows.parts[part]
            batch[of_part] = rows.take(places)
        return torch.from_numpy(batch)

    def row_numbers(self, rows_seen: int) -> Int64[np.ndarray, " batch"]:
        """Which rows make up that batch, from 0 to len(rows) - 1, a mixture's parts one after the other."""
        found = np.empty(self.batch_size, dtype=np.int64)
        parts = (self.rows,) if isinstance(self.rows, TokenRows) else self.rows.parts
        first = np.cumsum([0, *map(len, parts)])
        for part, of_part, places in self._choice(rows_seen):
            found[of_part] = first[part] + places
        return found

    def _choice(self, rows_seen: int) -> Iterator[tuple[int, Bool[np.ndarray, " batch"], Int64[np.ndarray, " rows"]]]:
        """For each part that a batch draws from: which of the batch's rows are its, and their places in it."""
        first = rows_seen + self.rank * self.batch_size
        numbers = np.arange(first, first + self.batch_size, dtype=np.int64)
        if isinstance(self.rows, TokenRows):
            yield 0, np.ones(self.batch_size, dtype=np.bool_), shuffled_places(len(self.rows), numbers, self.seed)
            return
        parts, earlier = self.rows.assign(numbers, self.seed)
        for part in np.unique(parts).tolist():
            of_part = parts == part
            seed = part_seed(self.seed, part)
            yield part, of_part, shuffled_places(len(self.rows.parts[part]), earlier[of_part], seed)

    def advance(self, rows_seen: int) -> int:
        """`rows_seen` after every process has taken one more batch."""
        return rows_seen + self.batch_size * self.processes
