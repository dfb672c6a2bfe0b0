"""The short causal convolution behind a mixer's projections, on the fastest form that the machine has."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asnn_goose.errors import MachineError
from asnn_goose.models.mixers import shift_tokens


def short_convolution(
    x: Float[Tensor, "batch time channels"],
    taps: Float[Tensor, "taps channels"],
    tail: Float[Tensor, "batch earlier channels"],
    valid: Bool[Tensor, "batch time"] | None = None,
) -> tuple[Float[Tensor, "batch time channels"], Float[Tensor, "batch earlier channels"]]:
    """Each channel's sum of its last valid values weighted by `taps`, the present one's first; the next call's tail.

    A tail holds what came before, the latest first: one token less than there are taps.
    """
    if valid is not None:
        return _convolve_valid(x, taps, tail, valid)
    earliest, time = len(taps) - 1, x.shape[1]
    if earliest == 0:
        return taps[0] * x, tail
    kernel = _compiled_kernel() if x.device.type == "cpu" and time > 1 and not torch.compiler.is_compiling() else None
    if kernel is not None:
        dtype = torch.promote_types(x.dtype, taps.dtype)
        x = x.to(dtype)
        return kernel(x, taps.to(dtype), tail.to(dtype)), following_tail(x, tail)
    extended = torch.cat((tail.to(x.dtype).flip(1), x), dim=1)
    mixed = taps[0] * x
    for place in range(1, len(taps)):
        mixed = torch.addcmul(mixed, taps[place], extended[:, earliest - place : earliest - place + time])
    return mixed, extended[:, time:].flip(1)


def following_tail(
    x: Float[Tensor, "batch time channels"], tail: Float[Tensor, "batch earlier channels"]
) -> Float[Tensor, "batch earlier channels"]:
    """The tail of the next call, in the dtype of x."""
    earliest = tail.shape[1]
    if earliest == 0:
        return tail
    return torch.cat((tail.to(x.dtype).flip(1), x[:, -earliest:]), dim=1)[:, -earliest:].flip(1)


def _convolve_valid(x: Tensor, taps: Tensor, tail: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    mixed, earlier, tails = taps[0] * x, x, []
    for place in range(1, len(taps)):
        earlier, last = shift_tokens(earlier, tail[:, place - 1], valid)
        tails.append(last)
        mixed = mixed + taps[place] * earlier
    return mixed, torch.stack(tails, dim=1) if tails else tail


@cache
def _compiled_kernel() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """The numba form, or None where numba is not installed."""
    try:
        from asnn_goose.kernels.convolution_numba import short_convolution_numba
    except MachineError:
        return None
    return short_convolution_numba
