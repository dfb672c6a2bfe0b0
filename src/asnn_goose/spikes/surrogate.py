"""The staircase that makes spikes, and what stands in for the derivative that it has not.

With z the activation in units of the quantization step, spikes change value where |z| crosses
1/2, 3/2, ... A surrogate is a function of u, the distance of |z| to the nearest of these thresholds,
so that for one level (ternary) it is the usual pair of bumps at -1/2 and +1/2.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

SurrogateKind = Literal["clipped_ste", "ste", "sigmoid", "triangle", "superspike", "atan", "recorded_ste"]


@dataclass(frozen=True)
class SurrogateSpec:
    """A surrogate by name, with its half-width in quantization steps and a factor on the gradient."""

    kind: SurrogateKind = "clipped_ste"
    width: float = 1.0
    gradient_scale: float = 1.0


def staircase(z: Float[Tensor, "*shape"], levels: int, signed: bool = True) -> Float[Tensor, "*shape"]:
    """The integer spikes sign(z) * min(levels, floor(|z| + 1/2)); without sign those of max(z, 0)."""
    given = z if signed else z.clamp_min(0.0)
    if torch.compiler.is_compiling():
        # Where its result was written into, what torch 2.11 compiles of a function has no gradient at all.
        return given.sign() * (given.abs() + 0.5).floor().clamp_max(levels)
    # The same on one new tensor: it is memory that a pass waits for.
    return given.abs().add_(0.5).floor_().clamp_max_(levels).copysign_(given)


def surrogate_derivative(
    z: Float[Tensor, "*shape"], levels: int, spec: SurrogateSpec, signed: bool = True
) -> Float[Tensor, "*shape"]:
    """The stand-in for d(spike)/dz at the normalized activation z; spikes that are not `signed` look at z, not at |z|.

    - ste: 1 everywhere (Bengio et al. 2013).
    - clipped_ste: 1 while |z| is at most levels - 1/2 + width, else 0: no pull on what is saturated; for spikes without
      sign also 0 where z is below 1/2 - width.
    - sigmoid: logistic density, peak 1, falling to about 0.42 at u = width.
    - triangle: max(0, 1 - |u| / width).
    - superspike: 1 / (1 + |u| / width)^2 (Zenke and Ganguli 2018).
    - atan: 1 / (1 + (u / width)^2), the derivative of an arctangent (Fang et al. 2021).
    """
    size = z.abs() if signed else z
    if spec.kind in ("ste", "recorded_ste"):
        bump = torch.ones_like(z)
    elif spec.kind == "clipped_ste":
        inside = size <= levels - 0.5 + spec.width
        bump = (inside if signed else inside & (size >= 0.5 - spec.width)).to(z.dtype)
    else:
        distance = _threshold_distance(size, levels) / spec.width
        match spec.kind:
            case "sigmoid":
                gate = torch.sigmoid(2.0 * distance)
                bump = 4.0 * gate * (1.0 - gate)
            case "triangle":
                bump = (1.0 - distance.abs()).clamp_min(0.0)
            case "superspike":
                bump = (1.0 + distance.abs()).square().reciprocal()
            case "atan":
                bump = (1.0 + distance.square()).reciprocal()
    return bump * spec.gradient_scale


def _threshold_distance(size: Float[Tensor, "*shape"], levels: int) -> Float[Tensor, "*shape"]:
    nearest = (size.floor() + 0.5).clamp(0.5, levels - 0.5)
    return size - nearest
