"""How a spike's threshold follows the activations, and what bounds amplitudes."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from asnn_goose.config_text import Section

PositiveAmplitude = Annotated[float, Field(gt=0.0)]


class FixedThreshold(Section):
    """theta = clamp(alpha * mean|x|, 0.01, 10), per token over channels, alpha constant."""

    kind: Literal["fixed"] = "fixed"
    alpha: float = Field(default=1.0, gt=0.0)
    """Threshold as a multiple of the token's mean absolute activation."""


class LearnedThreshold(Section):
    """As fixed, with alpha a parameter of each encoder that learns through the surrogate.

    Under spikes.surrogate.kind=recorded_ste nothing reaches it and it stays where it starts, as recorded.
    """

    kind: Literal["learned"] = "learned"
    alpha: float = Field(default=1.0, gt=0.0)
    """Starting value."""
    per: Literal["encoder", "channel"] = "encoder"
    """One alpha for an encoder, or one for each of its channels (the token's mean stays what it multiplies)."""


class ProgressiveThreshold(Section):
    """As fixed, with an alpha that goes evenly from one value to another while the run trains."""

    kind: Literal["progressive"]
    alpha: float = Field(default=0.5, gt=0.0)
    """Where it starts."""
    final_alpha: float = Field(default=1.0, gt=0.0)
    """Where it ends; evaluations before count for no best."""
    until: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of the run's steps after which it is there."""


class MixedThreshold(Section):
    """theta = clamp(alpha * ((1 - share) * token's mean|x| + share * channel's mean|x|), 0.01, 10), alpha constant.

    The channel's mean is over the tokens of the row so far; that recorded for v15r was over all tokens of the batch, so
    that a spike hung on what came after it, and on the rows beside it.
    """

    kind: Literal["mixed"]
    alpha: float = Field(default=1.0, gt=0.0)
    """Threshold as a multiple of the mixed mean."""
    channel_share: float = Field(default=0.35, gt=0.0, le=1.0)
    """Part of the channel's own mean."""


Threshold = Annotated[
    FixedThreshold | LearnedThreshold | ProgressiveThreshold | MixedThreshold, Field(discriminator="kind")
]


def check_amplitude_range(limits: Sequence[float] | None, amplitude: str) -> None:
    """Refuse a range of amplitudes that does not hold where they start, or holds none.

    Raises:
        ValueError: It does not.
    """
    if limits is not None and (amplitude == "none" or not limits[0] <= 0.9 < 1.1 <= limits[1]):
        raise ValueError(
            f"spikes.amplitude_range={list(limits)} with spikes.amplitude={amplitude}: amplitudes start from 0.9 to "
            "1.1, give a range around that such as [0.25, 4], or null"
        )


def check_threshold(per_channel: bool, mixed: bool, scale: str, has_membrane: bool, encoder: str) -> None:
    """Refuse thresholds that differ between a token's channels where spikes have one step, or two memories.

    Raises:
        ValueError: They do, or there are.
    """
    name = "spikes.threshold.per=channel" if per_channel else "spikes.threshold.kind=mixed"
    if (per_channel or mixed) and scale == "token":
        raise ValueError(
            f"{name} gives each channel a threshold of its own, and spikes.scale=token one step to all of a token: set "
            "spikes.scale=none"
        )
    if mixed and (has_membrane or encoder == "quantized"):
        raise ValueError(
            f"{name} goes with no membrane and no quantized encoder: set spikes.membrane=null and "
            "spikes.encoder=ternary or binary"
        )
