"""Seeded batches whose only state is a count of rows, so that a run resumes exactly where it stopped.

Row number n of one text belongs to epoch n // len(rows) and is the row at place n % len(rows) of that epoch's
permutation. In a mixture row n is of a part, and the part's own count stands in the place of n; a curriculum
(`curriculum.py`) says itself which row n is. Processes take consecutive pieces of this one sequence, so a restart with
another number of processes continues the same sequence.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from asnn_goose.data.curriculum import Course
from asnn_goose.data.mixture import MixedRows, part_seed
from asnn_goose.data.shuffling import shuffled_places
from asnn_goose.data.tokens import TokenRows


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
    course: Course | None = None
    """Which rows are open when, all of one text; None opens all of them from the start."""

    def __post_init__(self) -> None:
        if len(self.rows) < 1:
            raise ValueError("rows must hold at least one row, got 0; see training_rows")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.rank < self.processes:
            raise ValueError(f"rank must be in [0, processes), got rank {self.rank} of {self.processes} processes")
        if self.course is not None and not isinstance(self.rows, TokenRows):
            raise ValueError("a course orders the rows of one text, not those of a mixture")

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
            course, every = self.course, len(self.rows)
            shuffled = shuffled_places(every, numbers, self.seed) if course is None else course.places(numbers)
            yield 0, np.ones(self.batch_size, dtype=np.bool_), shuffled
            return
        parts, earlier = self.rows.assign(numbers, self.seed)
        for part in np.unique(parts).tolist():
            of_part = parts == part
            seed = part_seed(self.seed, part)
            yield part, of_part, shuffled_places(len(self.rows.parts[part]), earlier[of_part], seed)

    def advance(self, rows_seen: int) -> int:
        """`rows_seen` after every process has taken one more batch."""
        return rows_seen + self.batch_size * self.processes
