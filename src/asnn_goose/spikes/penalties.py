"""What an objective may add to keep encoders in shape; each is 0 where nothing is wrong."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

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
    """max(0, least_alpha - alpha)^2 averaged over the encoders whose alpha learns, and before over its channels.

    A threshold that falls towards 0 lets everything spike, or saturate.
    """
    learned = [part.alpha for part in encoders if isinstance(part.alpha, nn.Parameter) and part.learns_alpha]
    return _mean([(least_alpha - alpha).clamp_min(0.0).square().mean() for alpha in learned])


def excess_activity(
    events: Sequence[Mapping[str, Float[Tensor, ""]]],
    wanted: Mapping[str, float],
    form: Literal["hinge", "l1"] = "hinge",
) -> Float[Tensor, ""]:
    """The sum over the wanted sites of max(0, events - wanted), or of the events themselves, averaged over blocks.

    Events are mean |spike|, as `SpikeEncoder.counts_events` gives them. They are differentiable by what was encoded
    through the surrogate, and by alpha, but not where a spike is 0: what is silent stays silent.

    Args:
        events: Of each block, by site.
        wanted: Events per activation that each site should not exceed.
        form: `hinge` or `l1`.
    """
    parts = []
    for site, limit in wanted.items():
        found = [block[site] for block in events if site in block]
        if found:
            seen = torch.stack(found)
            parts.append((seen if form == "l1" else (seen - limit).clamp_min(0.0)).mean())
    return torch.stack(parts).sum() if parts else torch.zeros(())


def _mean(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).mean() if parts else torch.zeros(())
