"""What an objective may add to keep encoders in shape; each is 0 where nothing is wrong."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asnn_goose.spikes.encoder import SpikeEncoder


def amplitude_variance(encoders: Iterable[SpikeEncoder]) -> Float[Tensor, ""]:
    """Variance of each encoder's amplitudes over its channels, groups or signs, averaged over encoders.

    0 for scalar amplitudes, and where no encoder has one. As recorded for ASNN-Goose v11.
    """
    return _mean([part.amplitude.var(correction=0) for part in encoders if part.amplitude is not None])


def threshold_collapse(encoders: Iterable[SpikeEncoder], least_alpha: float) -> Float[Tensor, ""]:
    """max(0, least_alpha - alpha)^2 averaged over the encoders whose alpha learns.

    A threshold that falls towards 0 lets everything spike, or saturate.
    """
    learned = [part.alpha for part in encoders if isinstance(part.alpha, nn.Parameter) and part.learns_alpha]
    return _mean([(least_alpha - alpha).clamp_min(0.0).square() for alpha in learned])


def excess_activity(values: Float[Tensor, "*batch width"], most_events: float) -> Float[Tensor, ""]:
    """max(0, mean |value| - most_events): events per activation beyond those wanted.

    Differentiable by what was encoded through the surrogate, but for values of 0: a silent channel stays silent.
    """
    return (values.abs().mean() - most_events).clamp_min(0.0)


def _mean(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).mean() if parts else torch.zeros(())
