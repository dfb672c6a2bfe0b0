"""What spikes did, as pure functions of spike tensors that left the model; nothing here runs inside a forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Real
from torch import Tensor

from asnn_goose.spikes.encoder import SpikeEncoder


@dataclass(frozen=True)
class SiteStatistics:
    """Spike statistics of one site of one layer; every value is a 0-d tensor on the spikes' device.

    Attributes:
        density: Fraction of spikes that are not 0.
        events_per_activation: Mean |value|, the number of unit micro-steps a value expands into.
        silent_channel_fraction: Fraction of channels that never spiked.
        saturated_channel_fraction: Fraction of channels that spiked at every token.
        sign_balance: (positive - negative) / non-zero spikes, from -1 to 1; 0 if there is none.
        mean_value: Mean of the values.
        value_deviation: Their standard deviation.
        channel_rate_deviation: Standard deviation over channels of the fraction of tokens at which one spiked.
    """

    density: Tensor
    events_per_activation: Tensor
    silent_channel_fraction: Tensor
    saturated_channel_fraction: Tensor
    sign_balance: Tensor
    mean_value: Tensor
    value_deviation: Tensor
    channel_rate_deviation: Tensor


def site_statistics(values: Real[Tensor, "*batch width"]) -> SiteStatistics:
    """Statistics of one spike tensor over all its tokens."""
    spiked = (values != 0).flatten(end_dim=-2)  # tokens width
    events = spiked.sum().clamp_min(1)
    channel_rate = spiked.double().mean(dim=0)
    deviation, mean = torch.std_mean(values.double(), correction=0)
    return SiteStatistics(
        density=channel_rate.mean(),
        events_per_activation=values.abs().double().mean(),
        silent_channel_fraction=(channel_rate == 0).double().mean(),
        saturated_channel_fraction=(channel_rate == 1).double().mean(),
        sign_balance=values.sign().double().sum() / events,
        mean_value=mean,
        value_deviation=deviation,
        channel_rate_deviation=channel_rate.std(correction=0),
    )


@dataclass(frozen=True)
class EncoderStatistics:
    """What an encoder has learned; every value is a 0-d tensor on its device, and waits for nothing.

    Attributes:
        alpha: Threshold as a multiple of the token's mean magnitude; a mean where each channel has its own.
        amplitude: Mean of its amplitudes; 1 where it has none.
        amplitude_deviation: Their standard deviation.
    """

    alpha: Tensor
    amplitude: Tensor
    amplitude_deviation: Tensor


def encoder_statistics(encoder: SpikeEncoder) -> EncoderStatistics:
    """Threshold factor and amplitudes of one encoder as they are now."""
    alpha = encoder.alpha.detach().mean() if isinstance(encoder.alpha, Tensor) else torch.tensor(encoder.alpha)
    bounded = encoder.bounded_amplitude()
    amplitude = torch.ones(()) if bounded is None else bounded.detach()
    deviation, mean = torch.std_mean(amplitude, correction=0)
    return EncoderStatistics(alpha, mean, deviation)


def layer_statistics(spikes: Sequence[Mapping[str, Tensor]]) -> dict[str, SiteStatistics]:
    """Statistics of every site of every layer, keyed `layer_<index>.<site>`."""
    return {
        f"layer_{index}.{site}": site_statistics(values)
        for index, sites in enumerate(spikes)
        for site, values in sites.items()
    }
