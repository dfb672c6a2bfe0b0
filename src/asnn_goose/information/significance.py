"""An observed value beside those that permutations give, when there is nothing to know."""

from dataclasses import dataclass
from math import copysign, inf

from jaxtyping import Float
from torch import Tensor

# Values that are equal by construction differ by their rounding, and count as equal.
TIE = 1e-12


@dataclass(frozen=True)
class Null:
    """What an observed value means against its permutations.

    Attributes:
        observed: The value itself.
        mean: Mean over the permutations: what an estimator says when there is nothing to know.
        deviation: Standard deviation over the permutations (n - 1).
        z: (observed - mean) / deviation; infinite, or 0 for the mean itself, where permutations do not differ.
        p: (1 + permutations that reach the observed value) / (1 + permutations): never 0.
    """

    observed: float
    mean: float
    deviation: float
    z: float
    p: float

    @property
    def excess(self) -> float:
        """The observed value less what there is when there is nothing to know."""
        return self.observed - self.mean


def compare_with_null(observed: float, null: Float[Tensor, " permutations"]) -> Null:
    """The observed value against permutations, one-sided: larger is more than chance.

    Raises:
        ValueError: Fewer than 2 permutations.

    Source: Phipson & Smyth 2010, "Permutation p-values should never be zero", for p.
    """
    if len(null) < 2:
        raise ValueError(f"a null needs at least 2 permutations, got {len(null)}")
    values = null.double()
    mean, deviation = float(values.mean()), float(values.std())
    tie = TIE * max(1.0, abs(observed))
    difference = observed - mean if abs(observed - mean) > tie else 0.0
    z = copysign(inf, difference) if difference and deviation <= tie else difference / max(deviation, tie)
    reached = int((values >= observed - tie).sum())
    return Null(observed, mean, deviation, z, (1 + reached) / (1 + len(values)))
