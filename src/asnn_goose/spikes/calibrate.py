"""The threshold factor whose spikes come nearest to what they stand for, or of which there are few, on a grid.

For each alpha of the grid the error is the sum over tokens and channels of (x - step * values)^2, with the step and the
values of `spikes/encoder.py`. Errors of several batches add up, so that a few tokens at a time suffice.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from asnn_goose.spikes.encoder import SpikeEncoder

GRID = tuple(0.05 * 160 ** (place / 31) for place in range(32))
"""Factors from 0.05 to 8, each 18 % above the one before: the error hardly changes within that around its minimum."""
CHUNK_VALUES = 2**22
"""Activations that are looked at together."""


def alpha_errors(encoder: SpikeEncoder, x: Float[Tensor, "*batch width"]) -> Float[Tensor, " candidates"]:
    """The squared error of each factor of the grid, summed over the activations, in float64."""
    return _over_grid(encoder, x, lambda part, step: (part - step * encoder.quantize(part / step)).double().square())


def factor_events(encoder: SpikeEncoder, x: Float[Tensor, "*batch width"]) -> Float[Tensor, " candidates"]:
    """The events of each factor of the grid, sum |spike| over the activations, in float64."""
    return _over_grid(encoder, x, lambda part, step: encoder.quantize(part / step).abs().double())


def best_alpha(errors: Float[Tensor, " candidates"]) -> Float[Tensor, ""]:
    """The factor of the grid with the least error, the smaller of two; as a tensor, so that no device is waited for."""
    return torch.tensor(GRID, device=errors.device, dtype=errors.dtype)[errors.argmin()]


def quiet_alpha(events: Float[Tensor, " candidates"], most: float) -> Float[Tensor, ""]:
    """The smallest factor of the grid with at most so many events, else the largest; as a tensor, as above."""
    # Events fall as the factor rises.
    too_many = (events > most).sum().clamp_max(len(GRID) - 1)
    return torch.tensor(GRID, device=events.device, dtype=events.dtype)[too_many]


@torch.no_grad()
def _over_grid(encoder: SpikeEncoder, x: Tensor, figure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """For each factor of the grid the sum of a figure of activations and steps, a few tokens at a time."""
    tokens = x.flatten(end_dim=-2)
    sums = torch.zeros(len(GRID), dtype=torch.float64, device=x.device)
    for part in tokens.split(max(1, CHUNK_VALUES // tokens.shape[-1])):
        given = part if part.dtype == torch.float64 else part.float()
        for place, alpha in enumerate(GRID):
            sums[place] += figure(given, encoder.step(given, alpha)).sum()
    return sums
