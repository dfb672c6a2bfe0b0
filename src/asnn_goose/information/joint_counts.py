"""Contingency tables of all pairs of codes, exact, and the same under permutations of whole rows.

With codes as one-hot columns F [tokens, first_codes * channels] and S [tokens, second_codes * targets], all tables
are one product: F' S.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float32, Int, Int64
from torch import Tensor

from asnn_goose.information.permutations import LEAST_PERMUTED_ROWS, draw_derangements

# One-hot columns of more tokens are taken in turns.
CHUNK_TOKENS = 2**15
EXACT_TOKENS = 2**24
"""Tokens up to which float32 counts without a mistake."""
KEPT_MEETINGS = 16
"""Groups whose permutations are kept: many sites ask for the same ones, one after another."""


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
        return self.first_codes * self.channels, self.second_codes * self.targets

    def tables(self, counts: Int64[Tensor, "*permutations first_columns second_columns"]) -> Int64[Tensor, "..."]:
        """Products of one-hot columns as tables, [*permutations channels targets first second]."""
        split = counts.unflatten(-1, (self.second_codes, self.targets)).unflatten(-3, (self.first_codes, self.channels))
        # From first channels second targets.
        tables: Tensor = split.movedim((-3, -1), (-4, -3)).contiguous()
        return tables


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
        self.add_columns(one_hot(first, self._sizes.first_codes), one_hot(second, self._sizes.second_codes))

    def add_columns(
        self, first: Float32[Tensor, "*tokens first_columns"], second: Float32[Tensor, "*tokens second_columns"]
    ) -> None:
        """Count tokens that are `one_hot` already, as where several tables are made of one variable."""
        first, second = first.flatten(0, -2), second.flatten(0, -2)
        for some_first, some_second in zip(first.split(CHUNK_TOKENS), second.split(CHUNK_TOKENS), strict=True):
            self._counts += (some_first.T @ some_second).long()
        self.tokens += len(first)

    def tables(self) -> Int64[Tensor, "channels targets first second"]:
        """How often each pair of codes has met."""
        return self._sizes.tables(self._counts.clone())


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
        # Of tokens that float32 counts exactly; those of earlier tokens, once there are any, as whole numbers.
        self._counts = torch.zeros(permutations, *sizes.columns, device=device)
        self._earlier: Tensor | None = None
        self._tokens = 0
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
            self._add_group(first[:size], second[:size])
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
        total = self._counts.long()
        if self._earlier is not None:
            total += self._earlier
        meetings, pairs = self._group(*self._waiting)
        total += (meetings @ pairs).view(total.shape).long()
        return self._sizes.tables(total)

    def _add_group(self, first: Int[Tensor, "rows time channels"], second: Int[Tensor, "rows time targets"]) -> None:
        tokens = first.shape[0] * first.shape[1]
        if self._tokens + tokens > EXACT_TOKENS:
            whole = self._counts.long()
            self._earlier = whole if self._earlier is None else self._earlier.add_(whole)
            self._counts.zero_()
            self._tokens = 0
        self._tokens += tokens
        self._counts.flatten(1).addmm_(*self._group(first, second))

    def _group(
        self, first: Int[Tensor, "rows time channels"], second: Int[Tensor, "rows time targets"]
    ) -> tuple[Float32[Tensor, "permutations pairs"], Float32[Tensor, "pairs tables"]]:
        """One group: which rows meet in each permutation, and the tables of any two; their product counts."""
        rows = len(first)
        meetings = _meetings(rows, len(self._counts), self._seed, self._groups, first.device)
        # time rows columns
        hot_first = one_hot(first, self._sizes.first_codes).transpose(0, 1)
        hot_second = one_hot(second, self._sizes.second_codes).transpose(0, 1)
        met = hot_first.flatten(1).T @ hot_second.flatten(1)
        # rows rows first_columns second_columns
        by_rows = met.unflatten(1, (rows, -1)).unflatten(0, (rows, -1)).transpose(1, 2)
        return meetings, by_rows.flatten(2).flatten(0, 1)


@lru_cache(maxsize=KEPT_MEETINGS)
def _meetings(
    rows: int, permutations: int, seed: int, group: int, device: torch.device
) -> Float32[Tensor, "permutations pairs"]:
    """For each permutation a one where row i of the first variable meets row j of the second, at i * rows + j."""
    others = draw_derangements(rows, permutations, seed, group)
    return torch.zeros(permutations, rows, rows).scatter_(2, others.unsqueeze(2), 1.0).flatten(1).to(device)


def one_hot(codes: Int[Tensor, "*tokens channels"], count: int) -> Float32[Tensor, "*tokens columns"]:
    """A column for each code of each channel, code by code: a one where the channel has that code, else zero.

    Raises:
        ValueError: A code below 0 or beyond the number of codes.
    """
    *tokens, channels = codes.shape
    if codes.numel():
        least, most = (int(end) for end in codes.aminmax())
        if least < 0 or most >= count:
            raise ValueError(f"codes must be 0 to {count - 1}, got {least} to {most}")
    # Comparisons of floats are the fastest, and of whole numbers as small as these exact.
    given, hot = codes.float(), torch.empty(*tokens, count, channels, dtype=torch.float32, device=codes.device)
    for code in range(count):
        torch.eq(given, code, out=hot[..., code, :])
    return hot.flatten(-2)
