"""A lower bound on information that a probe proves: I(X; B) >= H(B) - cross-entropy of any decoder of B given X.

(Barber & Agakov 2003.) B is the bin of a real target, and I(X; B) <= I(X; target). The decoder is the best linear one
with Gaussian errors, N(w'x + c, deviation), solved from moments without iterations. It holds for any decoder, up to the
sampling error of the held-out tokens, as long as these had no part in the decoder or the borders.
"""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float, Float64, Real
from torch import Tensor

from asnn_goose.information.bins import bin_codes
from asnn_goose.information.mutual_information import entropy_bits
from asnn_goose.information.products import SelfProducts

LEAST_PROBABILITY = 1e-12
# Of the target's own deviation: below it a residual is rounding.
LEAST_RESIDUAL = 1e-9
# Of all inputs' mean squares: below it a variance is rounding.
ROUNDING = 1e-12
# Columns of a triangular matrix that are not worth taking apart.
WIDEST_SOLVED = 128
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class Decoder:
    """A linear decoder with Gaussian errors.

    Attributes:
        weights: Of inputs, for each target.
        intercept: Of each target.
        deviation: Of each target's errors on tokens that it was not solved on.
    """

    weights: Float64[Tensor, "width targets"]
    intercept: Float64[Tensor, " targets"]
    deviation: Float64[Tensor, " targets"]

    def predict(self, inputs: Real[Tensor, "tokens width"]) -> Float64[Tensor, "tokens targets"]:
        """Means of the targets."""
        return inputs.double() @ self.weights + self.intercept


class RidgeMoments:
    """What ridge regressions on the same inputs need of their training tokens; constant size.

    Args:
        width: Channels of an input.
        targets: How many numbers are predicted, each by itself.
        device: Where sums are kept.

    Attributes:
        tokens: How many have been added.
    """

    def __init__(self, width: int, targets: int, device: torch.device | str = "cpu") -> None:
        self.tokens = 0
        self._inputs = torch.zeros(width, dtype=torch.float64, device=device)
        self._products = SelfProducts(width, device)
        self._targets = torch.zeros(targets, dtype=torch.float64, device=device)
        self._cross_products = torch.zeros(width, targets, dtype=torch.float64, device=device)
        self._target_squares = torch.zeros(targets, dtype=torch.float64, device=device)

    def add(
        self, inputs: Real[Tensor, "*tokens width"], targets: Real[Tensor, "*tokens targets"], whole: bool = False
    ) -> None:
        """Take in training tokens.

        Args:
            inputs: Of tokens.
            targets: Of the same tokens.
            whole: Whether inputs are small whole numbers, whose products float32 adds up exactly and in half the time.
        """
        given, y = inputs.flatten(0, -2), targets.flatten(0, -2).double()
        x = given.double()
        self.tokens += len(x)
        self._inputs += x.sum(dim=0)
        self._products.add(given.float() if whole else x)
        self._targets += y.sum(dim=0)
        self._cross_products.addmm_(x.T, y)
        self._target_squares += y.square().sum(dim=0)

    def solve(self, ridge: float = 1e-3) -> Decoder:
        """The decoder of the tokens so far; channels that never change get weight 0.

        The deviation is that of the training residuals over (1 - degrees / tokens): generalized cross-validation's
        estimate for other tokens, which a probe of many channels on few tokens needs (Golub, Heath & Wahba 1979).

        Args:
            ridge: Penalty on squared weights, in units of the mean variance of a channel.

        Raises:
            ValueError: ridge not above 0, or fewer than 3 tokens.
        """
        if ridge <= 0:
            raise ValueError(f"ridge must be above 0, got {ridge}")
        if self.tokens < 3:
            raise ValueError(f"a probe needs at least 3 training tokens, got {self.tokens}")
        input_mean, target_mean = self._inputs / self.tokens, self._targets / self.tokens
        covariance = self._products.total().div_(self.tokens)
        # Inputs that never change have no variance to take a share of, only its rounding.
        least = ROUNDING * covariance.trace() + TINY
        covariance.addr_(input_mean, input_mean, alpha=-1)
        cross = self._cross_products / self.tokens - torch.outer(input_mean, target_mean)
        variance = (self._target_squares / self.tokens - target_mean.square()).clamp(min=0.0)
        penalty = torch.maximum(ridge * covariance.diagonal().mean(), least)
        penalized = covariance.clone()
        penalized.diagonal().add_(penalty)
        factor = torch.linalg.cholesky(penalized)
        weights = torch.cholesky_solve(cross, factor)
        # With C + p I = L L', the trace of C (C + p I)^-1 is the width less |p^(1/2) L^-1|^2.
        # Scaled before it is squared, for where nothing varies p is tiny.
        unused = (penalty.sqrt() * lower_inverse(factor)).square_().sum()
        # Centring takes one degree of freedom more than the weights do.
        degrees = 1 + len(covariance) - unused
        residual = variance - 2 * (weights * cross).sum(dim=0) + (weights * (covariance @ weights)).sum(dim=0)
        deviation = residual.clamp(min=0.0).sqrt() / (1 - degrees / self.tokens).clamp(min=1 / self.tokens)
        floor = LEAST_RESIDUAL * variance.sqrt() + TINY
        return Decoder(weights, target_mean - input_mean @ weights, torch.maximum(deviation, floor))


class HeldOutBound:
    """The bound that a decoder proves on held-out tokens, for each target; constant size.

    Attributes:
        tokens: How many have been added.
    """

    def __init__(self, decoder: Decoder, borders: Float[Tensor, "targets borders"]) -> None:
        self.tokens = 0
        self._decoder = decoder
        self._borders = borders.double()
        targets, bins = borders.shape[0], borders.shape[1] + 1
        self._counts = torch.zeros(targets, bins, dtype=torch.int64, device=borders.device)
        self._surprise_nats = torch.zeros(targets, dtype=torch.float64, device=borders.device)

    def add(self, inputs: Real[Tensor, "*tokens width"], targets: Real[Tensor, "*tokens targets"]) -> None:
        """Take in held-out tokens."""
        flat = targets.flatten(0, -2)
        codes = bin_codes(flat, self._borders)
        probabilities = bin_probabilities(
            self._decoder.predict(inputs.flatten(0, -2)), self._decoder.deviation, self._borders
        )
        self.tokens += len(flat)
        self._surprise_nats -= probabilities.gather(2, codes.unsqueeze(2)).squeeze(2).log().sum(dim=0)
        self._counts += torch.nn.functional.one_hot(codes, self._counts.shape[1]).sum(dim=0)

    def entropy_bits(self) -> Float64[Tensor, " targets"]:
        """Entropy of each target's bins, of which no bound can be more: the plug-in estimate.

        Raises:
            ValueError: No tokens so far.
        """
        return entropy_bits(self._counts, corrected=False)

    def bits(self) -> Float64[Tensor, " targets"]:
        """The bound for each target, in bits; negative where the decoder is worse than the bins' frequencies.

        The plug-in entropy is never too large on average: the bound stays one.

        Raises:
            ValueError: No tokens so far.
        """
        return self.entropy_bits() - self._surprise_nats / (self.tokens * log(2))


def lower_inverse(lower: Float64[Tensor, "width width"]) -> Float64[Tensor, "width width"]:
    """The inverse of a lower triangular matrix, by blocks: a third of the products of solving for the identity."""
    width = len(lower)
    if width <= WIDEST_SOLVED:
        identity = torch.eye(width, dtype=lower.dtype, device=lower.device)
        solved: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
        return solved
    half = width // 2
    above, below = lower_inverse(lower[:half, :half]), lower_inverse(lower[half:, half:])
    inverse = torch.zeros_like(lower)
    inverse[:half, :half], inverse[half:, half:] = above, below
    inverse[half:, :half] = -(below @ (lower[half:, :half] @ above))
    return inverse


def bin_probabilities(
    mean: Float64[Tensor, "tokens targets"],
    deviation: Float64[Tensor, " targets"],
    borders: Float64[Tensor, "targets borders"],
) -> Float64[Tensor, "tokens targets bins"]:
    """What N(mean, deviation) gives each bin, none less than 1e-12 before they are made to add up to 1."""
    # tokens targets borders
    below = torch.special.ndtr((borders - mean.unsqueeze(-1)) / deviation.unsqueeze(-1))
    edges = torch.nn.functional.pad(below, (1, 0), value=0.0), torch.nn.functional.pad(below, (0, 1), value=1.0)
    probabilities = (edges[1] - edges[0]).clamp(min=LEAST_PROBABILITY)
    return probabilities / probabilities.sum(dim=-1, keepdim=True)
