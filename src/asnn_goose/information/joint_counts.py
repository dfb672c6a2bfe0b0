"""Contingency tables of all pairs of codes, exact, and the same under permutations of whole rows.

With codes as one-hot columns F [tokens, channels * first_codes] and S [tokens, targets * second_codes], all tables
are one product: F' S.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int, Int64
from torch import Tensor

from asnn_goose.information.permutations import LEAST_PERMUTED_ROWS, draw_derangements

# One-hot columns of more tokens are taken in turns; sums in float32 are exact up to 2**24.
CHUNK_TOKENS = 2**15


@dataclass(frozen=True)
class TableSizes:
    """How many tables there are, and how large each is.

    Attributes:
        channels: Of the first variable.
        targets: Channels of the second variable.
        first_codes: Codes of the first variable, 0 to one less.
        second_codes: Codes of the second variable.
    """

    channels: int
    targets: int
    first_codes: int
    second_codes: int

    @property
    def columns(self) -> tuple[int, int]:
        """One-hot columns of both variables."""
        return self.channels * self.first_codes, self.targets * self.second_codes

    @property
    def axes(self) -> tuple[int, int, int, int]:
        """Both variables' columns taken apart."""
        return self.channels, self.first_codes, self.targets, self.second_codes


class JointCounts:
    """Tables of every channel of a first variable with every one of a second.

    Attributes:
        tokens: How many each table counts.
    """

    def __init__(self, sizes: TableSizes, device: torch.device | str = "cpu") -> None:
        self.tokens = 0
        self._sizes = sizes
        self._counts = torch.zeros(sizes.columns, dtype=torch.int64, device=device)

    def add(self, first: Int[Tensor, "*tokens channels"], second: Int[Tensor, "*tokens targets"]) -> None:
        """Count tokens.

        Raises:
            ValueError: A code below 0 or beyond the number of codes.
        """
        first, second = first.flatten(0, -2), second.flatten(0, -2)
        for some_first, some_second in zip(first.split(CHUNK_TOKENS), second.split(CHUNK_TOKENS), strict=True):
            hot_first = _one_hot(some_first, self._sizes.first_codes)
            self._counts += (hot_first.T @ _one_hot(some_second, self._sizes.second_codes)).long()
        self.tokens += len(first)

    def tables(self) -> Int64[Tensor, "channels targets first second"]:
        """How often each pair of codes has met."""
        return self._counts.reshape(self._sizes.axes).transpose(1, 2).clone()


class PermutedCounts:
    """Tables of all pairs when each row of the first variable meets another row of the second, for many permutations.

    The permutations are those of `permutations.py`: within groups of rows, given by the seed and the group's index, so
    the sizes of batches change nothing. A group's rows i and j meet in one table each, rows ** 2 in all, and a
    permutation adds up `rows` of them: against a product for each permutation that saves a factor of
    permutations / permuted_rows. Held are the counts and at most permuted_rows + 1 rows.

    Attributes:
        rows: How many have been added.
    """

    def __init__(
        self,
        sizes: TableSizes,
        permutations: int,
        permuted_rows: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start with no rows.

        Raises:
            ValueError: permuted_rows below 3.
        """
        if permuted_rows < LEAST_PERMUTED_ROWS:
            raise ValueError(f"permuted_rows must be at least {LEAST_PERMUTED_ROWS}, got {permuted_rows}")
        self.rows = 0
        self._sizes = sizes
        self._permuted_rows = permuted_rows
        self._seed = seed
        self._groups = 0
        self._counts = torch.zeros(permutations, *sizes.columns, dtype=torch.int64, device=device)
        self._waiting: tuple[Tensor, Tensor] | None = None

    def add(self, first: Int[Tensor, "rows time channels"], second: Int[Tensor, "rows time targets"]) -> None:
        """Count whole rows, all of one length.

        Raises:
            ValueError: A code below 0 or beyond the number of codes, in a group that is now closed.
        """
        self.rows += len(first)
        if self._waiting is not None:
            first, second = torch.cat([self._waiting[0], first]), torch.cat([self._waiting[1], second])
        size = self._permuted_rows
        while len(first) >= size + 2:
            self._counts += self._group_counts(first[:size], second[:size])
            self._groups += 1
            first, second = first[size:], second[size:]
        # Copies: a view would keep the whole batch.
        self._waiting = first.clone(), second.clone()

    def tables(self) -> Int64[Tensor, "permutations channels targets first second"]:
        """The tables of each permutation, the rows still waiting included; more rows may follow.

        Raises:
            ValueError: Fewer than 2 rows so far, or such a code among those that wait.
        """
        if self._waiting is None:
            raise ValueError("no rows to permute: at least 2 are needed, got 0")
        counts = self._counts + self._group_counts(*self._waiting)
        return counts.reshape(-1, *self._sizes.axes).transpose(2, 3)

    def _group_counts(
        self, first: Int[Tensor, "rows time channels"], second: Int[Tensor, "rows time targets"]
    ) -> Int64[Tensor, "permutations first_columns second_columns"]:
        """Counts of one group under all permutations."""
        rows = len(first)
        permutations = draw_derangements(rows, len(self._counts), self._seed, self._groups).to(first.device)
        hot_first = _one_hot(first, self._sizes.first_codes)
        # time rows second_columns
        hot_second = _one_hot(second, self._sizes.second_codes).transpose(0, 1).contiguous()
        counts = torch.zeros(self._counts.shape, dtype=torch.float32, device=self._counts.device)
        for row in range(rows):
            met = hot_first[row].T @ hot_second.flatten(1)
            # rows first_columns second_columns
            met = met.unflatten(1, hot_second.shape[1:]).transpose(0, 1).contiguous()
            counts += met[permutations[:, row]]
        return counts.long()


def _one_hot(codes: Int[Tensor, "*tokens channels"], count: int) -> Float32[Tensor, "*tokens columns"]:
    """Zeros, and a one for each channel's code."""
    hot = codes.unsqueeze(-1) == torch.arange(count, device=codes.device)
    if not bool(hot.any(dim=-1).all()):
        raise ValueError(f"codes must be 0 to {count - 1}, got {int(codes.min())} to {int(codes.max())}")
    return hot.flatten(-2).float()
