"""Products of a matrix with itself, X'X: what lies below the diagonal is what lies above it, and is not computed."""

import torch
from jaxtyping import Float64, Real
from torch import Tensor

STRIPS = 4
"""Strips of columns that a product is made in; with 4 of them 5/8 of all entries are computed."""
NARROWEST_STRIP = 32
"""Columns below which a strip takes longer than the entries it saves."""
EVEN_COLUMNS = 8
"""Products whose columns are a multiple of this take up to a third less time than those one or two wider."""


class SelfProducts:
    """X'X of all tokens that were added, in float64.

    Attributes:
        width: Columns of X.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.width = width
        self._strip = max(NARROWEST_STRIP, even_columns(-(-width // STRIPS)))
        self._upper = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, x: Real[Tensor, "tokens width"]) -> None:
        """Take in tokens; each call multiplies in their own number type."""
        for first in range(0, self.width, self._strip):
            strip, rest = x[:, first : first + self._strip], x[:, first:]
            place = self._upper[first : first + self._strip, first:]
            if x.dtype == torch.float64:
                place.addmm_(strip.T, rest)
            else:
                place += strip.T @ rest

    def total(self) -> Float64[Tensor, "width width"]:
        """Both triangles, as a copy."""
        total = self._upper.clone()
        for first in range(0, self.width, self._strip):
            behind = first + self._strip
            total[behind:, first:behind] = total[first:behind, behind:].T
        return total


def even_columns(width: int) -> int:
    """The least number of columns from `width` on that multiplies well."""
    return -(-width // EVEN_COLUMNS) * EVEN_COLUMNS
