"""A leaky membrane before the staircase: what a spike leaves of an activation, or what was too small for one, stays.

For each channel u_t = beta * c_{t-1} + z_t, s_t = staircase(u_t), c_t = u_t - s_t: leaky integrate and fire with a soft
reset, where c is the membrane. The backward goes from the last step to the first. With g_t and C_t the gradients of s_t
and c_t, and h_t the surrogate at u_t, that of u_t and z_t is D_t = h_t * g_t + (1 - r * h_t) * C_t and C_{t-1} =
beta * D_t; r is 0 where the reset is detached, else 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asnn_goose.errors import MachineError
from asnn_goose.kernels.reference import membrane_reference
from asnn_goose.spikes.surrogate import SurrogateSpec, staircase, surrogate_derivative

# Steps from which on a compiled kernel is called: one alone, as in decoding, is done sooner by torch.
LEAST_STEPS = 2


@dataclass(frozen=True)
class MembraneSpec:
    """A membrane's leak, and how gradients pass its reset.

    Attributes:
        beta: What a step leaves of the membrane, in [0, 1); 0 is an encoder without memory.
        detach_reset: Whether the spikes that are taken off count as constants, as in snnTorch; in SpikingJelly they do
            not unless told to. Attached, what a spike took is no longer there for later ones, and a surrogate of 1 lets
            no gradient through time. Detached, an activation is credited with up to 1 / (1 - beta) spikes; with
            clipped_ste at all sites `convert-pocket` then diverged within 64 steps.

    Raises:
        ValueError: A leak that is not in [0, 1).
    """

    beta: float = 0.9
    detach_reset: bool = False

    def __post_init__(self) -> None:
        """Check the leak."""
        if not 0.0 <= self.beta < 1.0:
            raise ValueError(f"a membrane's beta must be in [0, 1), got {self.beta}; see spikes.membrane")


def fire(
    z: Float[Tensor, "batch time width"],
    membrane: Float[Tensor, "batch width"] | None,
    valid: Bool[Tensor, "batch time"] | None,
    spec: MembraneSpec,
    levels: int,
    signed: bool,
    surrogate: SurrogateSpec,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
    """The integer spikes of normalized activations, and the membrane after the last step.

    Where `valid` is False the step is silent, has no gradient, and leaves the membrane as it was. Without a membrane
    each row starts from zero. Float32 or float64.
    """
    if membrane is None:
        membrane = z.new_zeros(z.shape[0], z.shape[2])
    values, last = _Fire.apply(z, membrane.to(z.dtype), valid, spec, levels, signed, surrogate)
    return values, last


class _Fire(torch.autograd.Function):
    """Both ways are operators that torch.compile does not look into, where a loop would become a graph a step."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, membrane: Tensor, valid: Tensor | None, spec: MembraneSpec, levels: int, signed: bool,
        surrogate: SurrogateSpec,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Keep the potentials: the backward needs nothing else of the past."""
        values, potentials, last = _forward(z, membrane, valid, spec.beta, levels, signed)
        ctx.save_for_backward(potentials, valid)
        ctx.spec, ctx.levels, ctx.signed, ctx.surrogate = spec, levels, signed, surrogate
        return values, last

    @staticmethod
    def backward(ctx: Any, arriving: Tensor, of_last: Tensor) -> tuple[Tensor | None, ...]:
        """The surrogate at each potential, and the walk back through time."""
        potentials, valid = ctx.saved_tensors
        slopes = surrogate_derivative(potentials, ctx.levels, ctx.surrogate, ctx.signed)
        gradient, of_start = _backward(slopes, arriving, of_last, valid, ctx.spec.beta, ctx.spec.detach_reset)
        return gradient, of_start, None, None, None, None, None


class _Form(NamedTuple):
    """An implementation of both ways."""

    forward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor]]


@torch.library.custom_op("asnn_goose::membrane", mutates_args=())
def _forward(
    z: Tensor, membrane: Tensor, valid: Tensor | None, beta: float, levels: int, signed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, potentials and the last membrane, on the fastest form that the machine has."""
    return _form(z).forward(z, membrane, valid, beta, levels, signed)


@_forward.register_fake
def _(z, membrane, valid, beta, levels, signed):  # type: ignore[no-untyped-def]
    return _dense(z), _dense(z), _dense(membrane)


@torch.library.custom_op("asnn_goose::membrane_backward", mutates_args=())
def _backward(
    slopes: Tensor, arriving: Tensor, of_last: Tensor, valid: Tensor | None, beta: float, detach_reset: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of z and of the first membrane."""
    return _form(slopes).backward(slopes, arriving, of_last, valid, beta, detach_reset)


@_backward.register_fake
def _(slopes, arriving, of_last, valid, beta, detach_reset):  # type: ignore[no-untyped-def]
    return _dense(slopes), _dense(of_last)


def _dense(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _form(z: Tensor) -> _Form:
    """The compiled kernels where they serve, else the loop in torch."""
    form = None
    if z.shape[1] >= LEAST_STEPS:
        if z.device.type == "cpu":
            form = _numba_form()
        elif z.is_cuda and z.dtype == torch.float32:
            form = _triton_form()
    return form or _Form(_fire_torch, _fire_backward_torch)


@cache
def _numba_form() -> _Form | None:
    """The numba form, or None where numba is not installed."""
    try:
        from asnn_goose.kernels.membrane_numba import fire_backward_numba, fire_numba
    except MachineError:
        return None
    return _Form(fire_numba, fire_backward_numba)


@cache
def _triton_form() -> _Form | None:
    """The Triton form, or None where triton is not installed."""
    try:
        from asnn_goose.kernels.membrane_triton import fire_backward_triton, fire_triton
    except MachineError:
        return None
    return _Form(fire_triton, fire_backward_triton)


def _fire_torch(
    z: Tensor, membrane: Tensor, valid: Tensor | None, beta: float, levels: int, signed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return membrane_reference(z, membrane, valid, beta, lambda potential: staircase(potential, levels, signed))


def _fire_backward_torch(
    slopes: Tensor, arriving: Tensor, of_last: Tensor, valid: Tensor | None, beta: float, detach_reset: bool
) -> tuple[Tensor, Tensor]:
    flow, gradient = of_last.clone(), torch.zeros_like(slopes)
    for step in range(slopes.shape[1] - 1, -1, -1):
        slope = slopes[:, step]
        kept = flow if detach_reset else (1 - slope) * flow
        found = slope * arriving[:, step] + kept
        live = torch.ones_like(found, dtype=torch.bool) if valid is None else valid[:, step, None]
        gradient[:, step] = torch.where(live, found, 0.0)
        flow = torch.where(live, beta * found, flow)
    return gradient, flow
