"""Real numbers as codes: bins that hold equally many of a calibration sample's values in each channel."""

import torch
from jaxtyping import Float, Float64, Int64, Real
from torch import Tensor


def equal_mass_borders(values: Real[Tensor, "tokens channels"], bins: int) -> Float64[Tensor, "channels borders"]:
    """The bins - 1 inner borders of each channel, in ascending order.

    A border lies midway between two neighbouring values of the sample, so bins hold equally many of them, to within
    one, where values differ. Equal values share a bin: borders may coincide, and all do in a constant channel.

    Raises:
        ValueError: Fewer than 2 bins, fewer tokens than bins, or values that are not finite.
    """
    tokens = len(values)
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
    if tokens < bins:
        raise ValueError(f"borders of {bins} bins need at least {bins} tokens, got {tokens}")
    if not bool(values.isfinite().all()):
        raise ValueError("borders need finite values, got NaN or infinity")
    ordered = values.double().sort(dim=0).values.T
    # Python's integers: tokens * bins needs no care for rounding.
    above = torch.tensor([(tokens * border + bins // 2) // bins for border in range(1, bins)], device=values.device)
    return (ordered[:, above - 1] + ordered[:, above]) / 2


def bin_codes(
    values: Real[Tensor, "*batch channels"], borders: Float[Tensor, "channels borders"]
) -> Int64[Tensor, "*batch channels"]:
    """The bin of each value, 0 to the number of borders: how many of its channel's borders lie below it."""
    channels = values.shape[-1]
    by_channel = values.reshape(-1, channels).T.to(borders.dtype).contiguous()
    return torch.searchsorted(borders.contiguous(), by_channel).T.reshape(values.shape)
