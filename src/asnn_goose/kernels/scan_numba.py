"""The linear scan S_t = decay * S_{t-1} + k_t * v_t compiled for the CPU by numba, where it is installed.

One task is one row of the batch and one block of channels: the loop over time is sequential, the loop
over channels inside it is SIMD, and the state it needs is still in the first-level cache. No two
tasks write to one address and no reduction crosses tasks, so results do not depend on the number of
threads, to the last bit. The backward is the reverse scan described in `scan_torch`.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from asnn_goose.kernels.numba_runtime import as_array, block_of, blocks_of, compile_kernel, numba, run_kernel


# no_type_check keeps the shape checks of the test run from wrapping what numba has to compile.
@compile_kernel
@no_type_check
def _scan(k, v, decay, initial_state, valid, masked, states):
    """Fill `states` (batch time width); `valid` is read only if `masked`."""
    batch, time, width = k.shape
    for task in numba.prange(batch * blocks_of(width)):
        row, first, last = block_of(task, width)
        rate = decay[first:last]
        before = initial_state[row, first:last]
        for step in range(time):
            after = states[row, step, first:last]
            if masked and not valid[row, step]:
                for channel in range(after.size):
                    after[channel] = before[channel]
            else:
                key = k[row, step, first:last]
                value = v[row, step, first:last]
                for channel in range(after.size):
                    after[channel] = rate[channel] * before[channel] + key[channel] * value[channel]
            before = after


@compile_kernel
@no_type_check
def _reverse_scan(
    k,
    v,
    decay,
    initial_state,
    valid,
    masked,
    states,
    states_gradient,
    carried,
    k_gradient,
    v_gradient,
    partial,
):
    """Fill both input gradients and `partial` (batch width), each row's share of the decay's gradient.

    `carried` (batch width) enters as the gradient of the final state and leaves as the initial state's.
    """
    batch, time, width = k.shape
    for task in numba.prange(batch * blocks_of(width)):
        row, first, last = block_of(task, width)
        rate = decay[first:last]
        flow = carried[row, first:last]
        share = partial[row, first:last]
        share[:] = 0
        # One array written per loop, or the compiler gives up proving that none overlap and stays scalar.
        for step in range(time - 1, -1, -1):
            arriving = states_gradient[row, step, first:last]
            k_out = k_gradient[row, step, first:last]
            v_out = v_gradient[row, step, first:last]
            for channel in range(flow.size):
                flow[channel] += arriving[channel]
            if masked and not valid[row, step]:
                k_out[:] = 0
                v_out[:] = 0
                continue
            key = k[row, step, first:last]
            value = v[row, step, first:last]
            before = states[row, step - 1, first:last] if step > 0 else initial_state[row, first:last]
            for channel in range(flow.size):
                k_out[channel] = flow[channel] * value[channel]
            for channel in range(flow.size):
                share[channel] += flow[channel] * before[channel]
            for channel in range(flow.size):
                v_out[channel] = flow[channel] * key[channel]
            for channel in range(flow.size):
                flow[channel] *= rate[channel]


def linear_scan_numba(
    k: Float[Tensor, "batch time width"],
    v: Float[Tensor, "batch time width"],
    decay: Float[Tensor, " width"],
    initial_state: Float[Tensor, "batch width"],
    valid: Bool[Tensor, "batch time"] | None,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
    """The state after each step and after the last one; float32 or float64 on the CPU.

    All float arguments share one dtype. Gradients reach k, v, decay and initial_state, once (no second
    derivative), and are zero at masked steps whatever their inputs hold. The first call compiles, for a
    few seconds, unless an earlier process left its machine code on disk.
    """
    states, final_state = _LinearScan.apply(k, v, decay, initial_state, valid)
    return states, final_state


class _LinearScan(torch.autograd.Function):
    """The compiled scan with the compiled reverse scan as backward."""

    @staticmethod
    def forward(
        ctx: Any,
        k: Float[Tensor, "batch time width"],
        v: Float[Tensor, "batch time width"],
        decay: Float[Tensor, " width"],
        initial_state: Float[Tensor, "batch width"],
        valid: Bool[Tensor, "batch time"] | None,
    ) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
        """Fill the states and keep them: they are what the backward needs of the past."""
        states = torch.empty(k.shape, dtype=k.dtype)
        run_kernel(_scan, *_inputs(k, v, decay, initial_state, valid), states.numpy())
        ctx.save_for_backward(k, v, decay, initial_state, valid, states)
        return states, states[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        states_gradient: Float[Tensor, "batch time width"],
        final_state_gradient: Float[Tensor, "batch width"],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        """Run the reverse scan; the rows' shares of the decay's gradient are added in the rows' order."""
        k, v, decay, initial_state, valid, states = ctx.saved_tensors
        carried = final_state_gradient.clone(memory_format=torch.contiguous_format)
        k_gradient, v_gradient = torch.empty_like(states), torch.empty_like(states)
        partial = np.empty(carried.shape, dtype=carried.numpy().dtype)
        run_kernel(
            _reverse_scan,
            *_inputs(k, v, decay, initial_state, valid),
            *(as_array(tensor) for tensor in (states, states_gradient, carried, k_gradient, v_gradient)),
            partial,
        )
        return k_gradient, v_gradient, torch.from_numpy(partial.sum(axis=0)), carried, None


def _inputs(
    k: Tensor, v: Tensor, decay: Tensor, initial_state: Tensor, valid: Tensor | None
) -> tuple[NDArray[Any] | bool, ...]:
    """The arguments both kernels begin with; an absent mask is a placeholder that is never read."""
    mask = np.ones((1, 1), dtype=np.bool_) if valid is None else as_array(valid)
    return as_array(k), as_array(v), as_array(decay), as_array(initial_state), mask, valid is not None
