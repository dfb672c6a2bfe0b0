"""What a threshold multiplies its factor with: a token's mean magnitude, or that mixed with each channel's own so far.

With m_t the mean of |x_t| over channels and c_t each channel's mean of |x| over the row's tokens up to t, a mixed
threshold is clamp(alpha * ((1 - share) * m_t + share * c_t), 0.01, 10). ASNN-Goose v15r took the mean over batch and
time for c, so that a token's spikes hung on rows beside it and tokens behind it; a running mean hangs on neither, and a
student that decodes step by step can have it: sums and a count are its state, carried as a membrane is.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class ThresholdSpec:
    """How a threshold is made beside its factor.

    Attributes:
        channelwise: Whether there is one learned factor a channel.
        scheduled: Whether the factor is one of the weights that training sets step by step, without a gradient.
        channel_share: Part of the channel's running mean in what the factor multiplies; 0 looks at the token alone.

    Raises:
        ValueError: A share outside of [0, 1].
    """

    channelwise: bool = False
    scheduled: bool = False
    channel_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.channel_share <= 1.0:
            raise ValueError(f"channel_share must be in [0, 1], got {self.channel_share}; v15r has 0.35")


def mixed_sizes(
    x: Float[Tensor, "batch time width"],
    share: float,
    memory: Float[Tensor, "batch state"] | None,
    valid: Bool[Tensor, "batch time"] | None,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch state"]]:
    """What the factor multiplies at each token and channel, and the memory after the last token; no gradient.

    The memory holds each channel's sum of |x| and, behind them, the number of tokens. Padding leaves it as it was.
    """
    size = x.detach().abs()
    counted = torch.ones_like(size[..., :1]) if valid is None else valid.unsqueeze(-1).to(size.dtype)
    # What padding holds may be anything, also not a number.
    seen = torch.cat((torch.where(counted > 0, size, 0.0), counted), dim=-1)
    sums = seen.cumsum(dim=1) + (0.0 if memory is None else memory.unsqueeze(1))
    running = sums[..., :-1] / sums[..., -1:].clamp_min(1.0)
    return torch.lerp(size.mean(dim=-1, keepdim=True).expand_as(size), running, share), sums[:, -1]
