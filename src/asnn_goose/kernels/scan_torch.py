"""The linear scan S_t = decay * S_{t-1} + k_t * v_t in torch alone: one in-place step per time, own backward.

The backward is the same recurrence run from the end: with G_t the gradient of everything after step t,
G_t = dL/dS_t + decay * G_{t+1}; then dL/dk_t = G_t * v_t, dL/dv_t = G_t * k_t, and
dL/ddecay = sum_t G_t * S_{t-1}. A masked step has k_t * v_t = 0 and decay 1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_scan_torch(
    k: Float[Tensor, "batch time width"],
    v: Float[Tensor, "batch time width"],
    decay: Float[Tensor, " width"],
    initial_state: Float[Tensor, "batch width"],
    valid: Bool[Tensor, "batch time"] | None,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
    """The state after each step and after the last one; float32 or float64, any device.

    All float arguments share one dtype. Gradients reach k, v, decay and initial_state, once (no second
    derivative), and are zero at masked steps whatever their inputs hold.
    """
    states, final_state = _LinearScan.apply(k, v, decay, initial_state, valid)
    return states, final_state


def _carries(decay: Float[Tensor, " width"], valid: Bool[Tensor, "batch time"] | None, time: int) -> Sequence[Tensor]:
    """What each step multiplies the state it finds by: decay, and 1 where the step is masked."""
    if valid is None:
        return [decay] * time
    return torch.where(valid.t()[:, :, None], decay, torch.ones_like(decay)).unbind(0)


class _LinearScan(torch.autograd.Function):
    """The scan with its reverse scan as backward."""

    @staticmethod
    def forward(
        ctx: Any,
        k: Float[Tensor, "batch time width"],
        v: Float[Tensor, "batch time width"],
        decay: Float[Tensor, " width"],
        initial_state: Float[Tensor, "batch width"],
        valid: Bool[Tensor, "batch time"] | None,
    ) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
        """Run the recurrence in place over a buffer that first holds the inputs k * v."""
        states = torch.empty(k.shape, dtype=k.dtype, device=k.device)
        torch.mul(k, v, out=states)
        if valid is not None:
            states.masked_fill_(~valid[:, :, None], 0)
        previous = initial_state
        for state, carry in zip(states.unbind(1), _carries(decay, valid, k.shape[1]), strict=True):
            state.addcmul_(previous, carry)
            previous = state
        ctx.save_for_backward(k, v, decay, initial_state, valid, states)
        return states, previous.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        states_gradient: Float[Tensor, "batch time width"],
        final_state_gradient: Float[Tensor, "batch width"],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        """Run the recurrence from the end, then form every gradient in whole-tensor operations."""
        k, v, decay, initial_state, valid, states = ctx.saved_tensors
        carried = states_gradient.clone(memory_format=torch.contiguous_format)
        carries = _carries(decay, valid, k.shape[1])
        steps = carried.unbind(1)
        steps[-1].add_(final_state_gradient)
        for step in range(len(steps) - 1, 0, -1):
            steps[step - 1].addcmul_(steps[step], carries[step])
        initial_gradient = steps[0] * carries[0]
        if valid is not None:
            carried.masked_fill_(~valid[:, :, None], 0)
        products = torch.empty_like(carried)
        torch.mul(steps[0], initial_state, out=products[:, 0])
        torch.mul(carried[:, 1:], states[:, :-1], out=products[:, 1:])
        decay_gradient = products.sum(dim=(0, 1))
        value_gradient = torch.mul(carried, k, out=products)
        key_gradient = carried.mul_(v)
        if valid is not None:
            for gradient in (key_gradient, value_gradient):
                gradient.masked_fill_(~valid[:, :, None], 0)
        return key_gradient, value_gradient, decay_gradient, initial_gradient, None
