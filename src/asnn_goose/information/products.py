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
        strip = max(NARROWEST_STRIP, even_columns(-(-width // STRIPS)))
        # By its first column, a strip of rows from the diagonal on: what lies left of that takes no memory either.
        self._strips = {
            first: torch.zeros(min(strip, width - first), width - first, dtype=torch.float64, device=device)
            for first in range(0, width, strip)
        }

    def add(self, x: Real[Tensor, "tokens width"]) -> None:
        """Take in tokens; each call multiplies in their own number type."""
        for first, place in self._strips.items():
            strip, rest = x[:, first : first + len(place)], x[:, first:]
            if x.dtype == torch.float64:
                place.addmm_(strip.T, rest)
            else:
                place += strip.T @ rest

    def total(self) -> Float64[Tensor, "width width"]:
        """Both triangles."""
        found = next(iter(self._strips.values()))
        total = found.new_empty(self.width, self.width)
        for first, place in self._strips.items():
            behind = first + len(place)
            total[first:behind, first:] = place
            total[behind:, first:behind] = place[:, len(place) :].T
        return total


def even_columns(width: int) -> int:
    """The least number of columns from `width` on that multiplies well."""
    return -(-width // EVEN_COLUMNS) * EVEN_COLUMNS
