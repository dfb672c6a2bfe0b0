"""A leaky membrane with soft reset and its reverse pass, compiled for the CPU by numba, where it is installed.

A task walks one row along time with a block of channels, as in `scan_numba`. The compiler may not fuse multiply and
add here: a potential that is rounded otherwise than in torch could fire another spike.
"""

from functools import partial
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asnn_goose.kernels.numba_runtime import as_array, block_of, blocks_of, compile_kernel, numba, run_kernel

compile_exactly = partial(compile_kernel, liberties=frozenset[str]())


# no_type_check keeps the shape checks of the test run from wrapping what numba has to compile.
@compile_exactly
@no_type_check
def _fire(z, valid, masked, beta, half, levels, signed, membrane, values, potentials):
    """Fill `values` and `potentials` (batch time width); `membrane` (batch width) is where it starts and ends."""
    batch, time, width = z.shape
    # A zero of the arrays' own type.
    nothing = half - half
    for task in numba.prange(batch * blocks_of(width)):
        row, first, last = block_of(task, width)
        carried = membrane[row, first:last]
        for step in range(time):
            given = z[row, step, first:last]
            spikes = values[row, step, first:last]
            potential = potentials[row, step, first:last]
            if masked and not valid[row, step]:
                spikes[:] = 0
                potential[:] = 0
                continue
            for channel in range(carried.size):
                potential[channel] = beta * carried[channel] + given[channel]
            for channel in range(carried.size):
                # Comparisons leave what is not a number as it is, for the guards of training to see.
                size = np.floor((abs(potential[channel]) if signed else potential[channel]) + half)
                if size > levels:
                    size = levels
                if size < 0:
                    size = nothing
                spikes[channel] = -size if signed and potential[channel] < 0 else size
            for channel in range(carried.size):
                carried[channel] = potential[channel] - spikes[channel]


@compile_exactly
@no_type_check
def _fire_backward(slopes, arriving, valid, masked, beta, through_reset, flow, gradient):
    """Fill `gradient` (batch time width); `flow` (batch width) enters as the last membrane's and leaves as the first's.

    `through_reset` is 1 where a gradient passes the reset, else 0.
    """
    batch, time, width = slopes.shape
    for task in numba.prange(batch * blocks_of(width)):
        row, first, last = block_of(task, width)
        carried = flow[row, first:last]
        for step in range(time - 1, -1, -1):
            slope = slopes[row, step, first:last]
            given = arriving[row, step, first:last]
            found = gradient[row, step, first:last]
            if masked and not valid[row, step]:
                found[:] = 0
                continue
            for channel in range(carried.size):
                kept = (1 - through_reset * slope[channel]) * carried[channel]
                found[channel] = slope[channel] * given[channel] + kept
            for channel in range(carried.size):
                carried[channel] = beta * found[channel]


def fire_numba(
    z: Float[Tensor, "batch time width"],
    membrane: Float[Tensor, "batch width"],
    valid: Bool[Tensor, "batch time"] | None,
    beta: float,
    levels: int,
    signed: bool,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
    """Spikes, potentials and the last membrane of `membrane_reference` with the staircase, bit for bit, on the CPU.

    All float arguments share one dtype, float32 or float64. There is no gradient.
    """
    values, potentials, last = _room(z), _room(z), membrane.clone(memory_format=torch.contiguous_format)
    array = as_array(z)
    beta, half, most = (array.dtype.type(number) for number in (beta, 0.5, levels))
    run_kernel(
        _fire, array, *_mask(valid), beta, half, most, signed, *(part.numpy() for part in (last, values, potentials))
    )
    return values, potentials, last


def fire_backward_numba(
    slopes: Float[Tensor, "batch time width"],
    arriving: Float[Tensor, "batch time width"],
    of_last: Float[Tensor, "batch width"],
    valid: Bool[Tensor, "batch time"] | None,
    beta: float,
    detach_reset: bool,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
    """The gradients of z and of the first membrane; see `spikes/membrane.py`."""
    gradient, flow = _room(slopes), of_last.clone(memory_format=torch.contiguous_format)
    array = as_array(slopes)
    beta, through_reset = (array.dtype.type(number) for number in (beta, not detach_reset))
    run_kernel(
        _fire_backward, array, as_array(arriving), *_mask(valid), beta, through_reset, flow.numpy(), gradient.numpy()
    )
    return gradient, flow


def _room(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _mask(valid: Tensor | None) -> tuple[object, bool]:
    """The mask and whether there is one; an absent one is a placeholder that is never read."""
    return (np.ones((1, 1), dtype=np.bool_), False) if valid is None else (as_array(valid), True)
