"""The spike encoder's staircase with a fixed threshold factor, compiled for the CPU by numba, where it is installed.

One pass over a token gives its mean magnitude, its step and its spikes, where torch makes a pass for each operation.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from asnn_goose.kernels.numba_runtime import as_array, compile_kernel, numba, run_kernel


# no_type_check keeps the shape checks of the test run from wrapping what numba has to compile.
@compile_kernel
@no_type_check
def _encode(x, alpha, least, most, levels, half, values, steps):
    """Fill `values` (tokens width) and `steps` (tokens 1)."""
    tokens, width = x.shape
    for token in numba.prange(tokens):
        total = x[token, 0] * 0
        for channel in range(width):
            total += abs(x[token, channel])
        threshold = alpha * total / width
        # Comparisons leave what is not a number as it is, for the guards of training to see.
        if threshold < least:
            threshold = least
        if threshold > most:
            threshold = most
        steps[token, 0] = 2 * threshold
        for channel in range(width):
            size = np.floor(abs(x[token, channel]) / steps[token, 0] + half)
            if size > levels:
                size = levels
            values[token, channel] = size if x[token, channel] > 0 else -size


@compile_kernel
@no_type_check
def _encode_backward(x, steps, arriving, limit, factor, gradient):
    """Fill `gradient`: what arrives, over the step, where the activation is at most `limit` steps."""
    tokens, width = x.shape
    for token in numba.prange(tokens):
        for channel in range(width):
            inside = abs(x[token, channel]) / steps[token, 0] <= limit
            gradient[token, channel] = arriving[token, channel] / steps[token, 0] * factor if inside else 0


def encode_numba(
    x: Float[Tensor, "*batch width"],
    alpha: float,
    threshold_range: tuple[float, float],
    levels: int,
    limit: float,
    gradient_scale: float,
) -> tuple[Float[Tensor, "*batch width"], Float[Tensor, "*batch 1"]]:
    """Integer spikes and each token's step; float32 or float64, CPU.

    The gradient passes where |x| is at most `limit` steps, times `gradient_scale` over the step, and is zero
    elsewhere (the clipped straight-through estimator; an infinite limit does not clip). The step has no gradient.
    """
    values, steps = _Encode.apply(x, alpha, threshold_range, levels, limit, gradient_scale)
    return values, steps


class _Encode(torch.autograd.Function):
    """The compiled staircase with its surrogate gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: float, bounds: tuple[float, float], levels: int, limit: float, scale: float
    ) -> tuple[Tensor, Tensor]:
        """One pass a token; the backward needs what went in and the steps."""
        flat = x.detach().reshape(-1, x.shape[-1])
        values, steps = torch.empty_like(flat, memory_format=torch.contiguous_format), flat.new_empty(len(flat), 1)
        array = as_array(flat)
        number = array.dtype.type
        run_kernel(_encode, array, alpha, *bounds, number(levels), number(0.5), values.numpy(), steps.numpy())
        steps = steps.view(*x.shape[:-1], 1)
        ctx.save_for_backward(x, steps)
        ctx.limit, ctx.scale = limit, scale
        ctx.mark_non_differentiable(steps)
        return values.view(x.shape), steps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, arriving: Tensor, of_steps: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        """The surrogate in place of a derivative that is zero almost everywhere."""
        x, steps = ctx.saved_tensors
        flat = (as_array(part.reshape(-1, part.shape[-1])) for part in (x, steps, arriving))
        gradient = torch.empty(x.shape, dtype=x.dtype)
        run_kernel(_encode_backward, *flat, ctx.limit, ctx.scale, gradient.view(-1, x.shape[-1]).numpy())
        return gradient, None, None, None, None, None
