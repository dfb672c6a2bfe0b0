"""How one site's spikes are made, in the form that a fused operator takes: numbers, and factors on the device."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Larger than any |x| in steps, and finite when it is multiplied by one.
UNLIMITED = 1e30


@dataclass(frozen=True)
class SiteEncoding:
    """How the spikes of one site are made, and their gradient.

    Attributes:
        levels: Largest absolute spike value.
        alpha: Threshold as a multiple of the token's mean |x|; with `own`, a factor on that one.
        limit: The gradient passes where |x| is at most so many steps; infinity does not clip.
        gradient_scale: Factor on the gradient.
        scaled: Whether spikes are multiplied by the token's step.
        own: The threshold factor as a number on the device, which has no gradient, or None.
    """

    levels: int
    alpha: float
    limit: float
    gradient_scale: float
    scaled: bool
    own: Float[Tensor, ""] | None = None


def encoding_choices(encoding: SiteEncoding | None) -> list[float]:
    """An encoding as the operator takes it; no levels is none."""
    if encoding is None:
        return [0.0] * 5
    limit = min(encoding.limit, UNLIMITED)
    return [float(encoding.levels), encoding.alpha, limit, encoding.gradient_scale, float(encoding.scaled)]


def own_factors(encodings: tuple[SiteEncoding | None, SiteEncoding | None]) -> Float[Tensor, " sites"] | None:
    """The sites' own threshold factors side by side, 1 for a site without one; None where no site has one."""
    own = [None if encoding is None else encoding.own for encoding in encodings]
    like = next((number for number in own if number is not None), None)
    if like is None:
        return None
    return torch.stack([torch.ones_like(like) if number is None else number for number in own]).detach().float()
