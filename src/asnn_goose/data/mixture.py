"""Rows of several texts by weight, such that the number of rows seen says which rows come next.

Row number n of a mixture lies in block n // BLOCK_ROWS. A block has a fixed number of rows of each part, by
largest remainder, in an order drawn from the seed and the block's number; so which part row n is of, and how
many rows of that part came before it, is known without going through them.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from asnn_goose.config_text import BLOCK_ROWS
from asnn_goose.data.tokens import TokenRows

OF_BLOCKS, OF_PARTS = 0, 1
"""First spawn key of the seeds that order a mixture's blocks, and of those that order its parts' rows."""


@dataclass(frozen=True, eq=False)
class MixedRows:
    """Rows of several texts, of which each gives its share.

    Raises:
        ValueError: There is no part, a part has no row or no share of a block, or the parts' windows differ.
    """

    parts: tuple[TokenRows, ...]
    """The rows of each text."""
    weights: tuple[float, ...]
    """Each part's weight in rows; only their ratios count, and shares are rounded to one row in `BLOCK_ROWS`."""

    def __post_init__(self) -> None:
        if not self.parts or len(self.weights) != len(self.parts) or not all(map(len, self.parts)):
            rows = [len(part) for part in self.parts]
            raise ValueError(f"a mixture must hold parts with rows and a weight each, got {rows} and {self.weights}")
        if len({part.window for part in self.parts}) > 1:
            raise ValueError(f"parts must have one window, got {[part.window for part in self.parts]}")
        if min(self.weights) <= 0 or min(block_shares(self.weights)) < 1:
            raise ValueError(f"every weight must be at least 1/{BLOCK_ROWS} of their sum, got {self.weights}")

    @property
    def window(self) -> int:
        """Tokens a row holds."""
        return self.parts[0].window

    def __len__(self) -> int:
        """Number of rows of all parts together."""
        return sum(map(len, self.parts))

    def assign(
        self, numbers: Int64[np.ndarray, " rows"], seed: int
    ) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
        """The part that each numbered row is of, and how many rows of that part came before it."""
        shares = block_shares(self.weights)
        blocks, places = np.divmod(numbers, BLOCK_ROWS)
        parts, earlier = np.empty_like(places), np.empty_like(places)
        for block in np.unique(blocks):
            in_block = blocks == block
            order, earlier_in_block = _block_order(shares, seed, int(block))
            parts[in_block] = order[places[in_block]]
            earlier[in_block] = earlier_in_block[places[in_block]]
        return parts, earlier + blocks * np.asarray(shares, dtype=np.int64)[parts]


def block_shares(weights: tuple[float, ...]) -> tuple[int, ...]:
    """How many of a block's rows are of each part, by largest remainder; of equal remainders the first counts."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * BLOCK_ROWS
    shares = np.floor(exact).astype(np.int64)
    largest = np.argsort(shares - exact, kind="stable")
    shares[largest[: BLOCK_ROWS - int(shares.sum())]] += 1
    return tuple(shares.tolist())


def part_seed(seed: int, part: int) -> int:
    """The seed that orders a part's rows, so that two parts of the same size do not go in step."""
    return int(np.random.SeedSequence(seed, spawn_key=(OF_PARTS, part)).generate_state(1, np.uint64)[0])


@lru_cache(maxsize=4)
def _block_order(
    shares: tuple[int, ...], seed: int, block: int
) -> tuple[Int64[np.ndarray, " block"], Int64[np.ndarray, " block"]]:
    """The part of each place of a block, and how many earlier places of the block are of the same part."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(OF_BLOCKS, block))))
    order = generator.permutation(np.repeat(np.arange(len(shares), dtype=np.int64), shares))
    earlier = np.empty_like(order)
    for part, share in enumerate(shares):
        earlier[order == part] = np.arange(share)
    order.flags.writeable = earlier.flags.writeable = False
    return order, earlier
