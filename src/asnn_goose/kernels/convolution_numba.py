"""The short causal convolution of a mixer compiled for the CPU by numba, where it is installed.

One task is one row of the batch and one block of channels; time is walked step by step, so every value is read from
memory once and is still in the first-level cache for the other taps. No two tasks write to one address and no
reduction crosses tasks, so results do not depend on the number of threads, to the last bit.
"""

from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from asnn_goose.kernels.numba_runtime import as_array, block_of, blocks_of, compile_kernel, numba, run_kernel


# no_type_check keeps the shape checks of the test run from wrapping what numba has to compile.
@compile_kernel
@no_type_check
def _convolve(x, taps, tail, mixed):
    """Fill `mixed` (batch time channels); `tail` holds the latest token before the row first."""
    batch, time, channels = x.shape
    for task in numba.prange(batch * blocks_of(channels)):
        row, first, last = block_of(task, channels)
        for step in range(time):
            out = mixed[row, step, first:last]
            weight = taps[0, first:last]
            source = x[row, step, first:last]
            for channel in range(out.size):
                out[channel] = weight[channel] * source[channel]
            for place in range(1, taps.shape[0]):
                weight = taps[place, first:last]
                source = x[row, step - place, first:last] if step >= place else tail[row, place - step - 1, first:last]
                for channel in range(out.size):
                    out[channel] += weight[channel] * source[channel]


@compile_kernel
@no_type_check
def _convolve_backward(x, taps, tail, arriving, x_gradient, taps_partial, tail_gradient):
    """Fill the gradients of x and tail, and `taps_partial` (batch taps channels), each row's share of the taps'."""
    batch, time, channels = x.shape
    for task in numba.prange(batch * blocks_of(channels)):
        row, first, last = block_of(task, channels)
        taps_partial[row, :, first:last] = 0
        tail_gradient[row, :, first:last] = 0
        for step in range(time):
            # What reaches an input comes from its own step and the next ones that still see it.
            out = x_gradient[row, step, first:last]
            weight = taps[0, first:last]
            flow = arriving[row, step, first:last]
            for channel in range(out.size):
                out[channel] = weight[channel] * flow[channel]
            for place in range(1, min(taps.shape[0], time - step)):
                weight = taps[place, first:last]
                later = arriving[row, step + place, first:last]
                for channel in range(out.size):
                    out[channel] += weight[channel] * later[channel]
            for place in range(taps.shape[0]):
                share = taps_partial[row, place, first:last]
                source = x[row, step - place, first:last] if step >= place else tail[row, place - step - 1, first:last]
                for channel in range(share.size):
                    share[channel] += flow[channel] * source[channel]
            for place in range(step + 1, taps.shape[0]):
                weight = taps[place, first:last]
                earlier = tail_gradient[row, place - step - 1, first:last]
                for channel in range(earlier.size):
                    earlier[channel] += weight[channel] * flow[channel]


def short_convolution_numba(
    x: Float[Tensor, "batch time channels"],
    taps: Float[Tensor, "taps channels"],
    tail: Float[Tensor, "batch earlier channels"],
) -> Float[Tensor, "batch time channels"]:
    """Each channel's sum of its last values, weighted by `taps`, the present one's first; float32 or float64, CPU.

    All arguments share one dtype. `tail` holds what came before the row, the latest first: one token less than there
    are taps. Gradients reach all three, once (no second derivative). The first call compiles, for a few seconds,
    unless an earlier process left its machine code on disk.
    """
    mixed: Tensor = _ShortConvolution.apply(x, taps, tail)
    return mixed


class _ShortConvolution(torch.autograd.Function):
    """The compiled convolution with its compiled gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, tail: Tensor) -> Tensor:
        """Fill the sums; the backward needs only what went in."""
        mixed = torch.empty(x.shape, dtype=x.dtype)
        run_kernel(_convolve, as_array(x), as_array(taps), as_array(tail), mixed.numpy())
        ctx.save_for_backward(x, taps, tail)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same walk; the rows' shares of the taps' gradient are added in the rows' order."""
        x, taps, tail = ctx.saved_tensors
        x_gradient, tail_gradient = torch.empty(x.shape, dtype=x.dtype), torch.empty(tail.shape, dtype=x.dtype)
        partial = torch.empty(x.shape[0], *taps.shape, dtype=x.dtype)
        inputs = (as_array(part) for part in (x, taps, tail, arriving))
        run_kernel(_convolve_backward, *inputs, x_gradient.numpy(), partial.numpy(), tail_gradient.numpy())
        return x_gradient, partial.sum(dim=0), tail_gradient
