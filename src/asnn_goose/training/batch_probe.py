"""`training.batch_size: auto`: the largest micro-batch that fits the GPU and still pays, found by trying a few."""

from collections.abc import Callable

import torch

MOST_TOKENS = 32_768
"""Tokens a micro-batch holds at most: a GPU is busy from 16,384 on, and larger batches only take fewer steps."""
MEMORY_SHARE = 0.85
"""Share of the GPU's memory that a step may take; the rest is for evaluation and fragmentation."""
CPU_BATCH = 8
"""What a CPU takes: its arithmetic is busy with a few rows, and its memory tells nothing about speed."""
MULTIPLE = 8
"""From this size on a batch is a multiple of it, which fills the tiles of a matrix unit."""
SMALL = (1, 3)
"""Batches whose peaks give the memory of a row and of everything else."""


def fitting_batch(peak_bytes: Callable[[int], int], room: int, most: int) -> int:
    """The largest batch of at most `most` rows whose step stays within `room` bytes.

    A step's peak is taken to be linear in its rows, measured at two small sizes; the found size is then tried, and
    made smaller by a quarter until it does fit.

    Args:
        peak_bytes: Runs one step of so many rows and returns its peak; may raise torch's OutOfMemoryError.
        room: Bytes that a step may take.
        most: Rows above which nothing is gained.

    Raises:
        torch.OutOfMemoryError: One row does not fit.
    """
    fewer, more = SMALL
    least = peak_bytes(fewer)
    try:
        row = (peak_bytes(more) - least) / (more - fewer)
    except torch.OutOfMemoryError:
        return fewer
    found = most if row <= 0 else min(most, int((room - least) / row) + fewer)
    while True:
        found = rounded_batch(found)
        if found <= fewer:
            return fewer
        try:
            if peak_bytes(found) <= room:
                return found
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        found = found * 3 // 4


def rounded_batch(rows: int) -> int:
    """The next smaller multiple of `MULTIPLE`, or power of two below it; at least 1."""
    if rows >= MULTIPLE:
        return rows // MULTIPLE * MULTIPLE
    return 1 << max(rows, 1).bit_length() - 1
