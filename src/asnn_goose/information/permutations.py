"""Which row meets which when there is nothing to know: rows permuted in groups of neighbours, none with itself.

Rows come in groups of `permuted_rows`, so that memory does not grow with the text. A group is closed once two more
rows wait behind it: the last one holds 2 to permuted_rows + 1 rows, and no row is left over alone. Within a group a
permutation is a derangement, for a row that meets itself would bring what is looked for into the null.
Derangements and the given order form no group, so a p against them is exact in the limit of many rows only.
"""

from math import prod

import torch
from jaxtyping import Int64
from torch import Tensor

from asnn_goose.errors import DataError
from asnn_goose.information.randomness import generator_for

LEAST_PERMUTED_ROWS = 3


def group_sizes(rows: int, permuted_rows: int) -> list[int]:
    """How many rows each group holds; a lone row is a group that cannot be permuted.

    Raises:
        ValueError: Groups of fewer than 3 rows, among which there is one derangement however long the text.
    """
    if permuted_rows < LEAST_PERMUTED_ROWS:
        raise ValueError(f"permuted_rows must be at least {LEAST_PERMUTED_ROWS}, got {permuted_rows}")
    closed = max(0, (rows - 2) // permuted_rows)
    rest = rows - closed * permuted_rows
    return [permuted_rows] * closed + ([rest] if rest else [])


def count_derangements(rows: int) -> int:
    """Permutations of so many rows without a fixed point (1, 0, 1, 2, 9, 44, ...)."""
    before, count = 0, 1
    for row in range(1, rows + 1):
        before, count = count, (row - 1) * (count + before)
    return count


def count_arrangements(rows: int, permuted_rows: int) -> int:
    """Different ways in which the rows of a text can be permuted within their groups."""
    return prod(map(count_derangements, group_sizes(rows, permuted_rows))) if rows else 0


def least_rows(permutations: int, permuted_rows: int) -> int:
    """Rows from which on any number of rows has at least so many arrangements."""
    rows, last_short = 1, 1
    # A further group multiplies the arrangements, so permuted_rows good numbers in a row settle all that follow.
    while rows - last_short < permuted_rows:
        rows += 1
        if count_arrangements(rows, permuted_rows) < permutations:
            last_short = rows
    return last_short + 1


def check_enough_rows(rows: int, permutations: int, permuted_rows: int) -> None:
    """Refuse a text of which there are fewer arrangements than a null asks for.

    Raises:
        DataError: Too few rows; says how many are needed.
    """
    if count_arrangements(rows, permuted_rows) < permutations:
        raise DataError(
            f"too little text for a null of {permutations} permutations: {rows} rows, "
            f"at least {least_rows(permutations, permuted_rows)} are needed; give more text or ask for fewer"
        )


def draw_derangements(rows: int, permutations: int, seed: int, group: int) -> Int64[Tensor, "permutations rows"]:
    """Derangements of 0 to rows - 1, each as likely as any other, independent of each other; on the CPU.

    They follow from the seed and the group's index alone, and may repeat where there are few of them.

    Raises:
        ValueError: Fewer than 2 rows, of which there is no derangement.
    """
    if rows < 2:
        raise ValueError(f"a derangement needs at least 2 rows, got {rows}")
    generator = generator_for(seed, group)
    own_place = torch.arange(rows)
    found = torch.empty(0, rows, dtype=torch.int64)
    # At least a third of all permutations are derangements, so four draws for each wanted one mostly suffice.
    while len(found) < permutations:
        keys = torch.rand(4 * permutations, rows, generator=generator, dtype=torch.float64)
        drawn = keys.argsort(dim=1, stable=True)
        found = torch.cat([found, drawn[(drawn != own_place).all(dim=1)]])
    return found[:permutations]
