"""The scan S_t = decay * S_{t-1} + k_t * v_t on an NVIDIA GPU, as one operator that torch.compile does not look into.

The backward is the reverse scan described in `scan_torch`. No two programs write to one address, and the rows' shares
of the decay's gradient are added in a fixed order, so the same inputs give the same bits each time.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asnn_goose.kernels.scan_triton_kernels import INTERPRETED, reverse_scan_kernel, scan_kernel

# One channel a thread and one warp a program: 64 rows of 768 channels keep 11 or 12 warps busy on each of an H200's 132
# multiprocessors. A tile asks for 2 or 3 x 128 bytes a step and warp, 70 to 95 KB a multiprocessor, where 26 KB in
# flight keep 4.3 TB/s going at a latency of 0.8 us. Neither kernel spills: 100 registers of 255.
FORWARD = {"block": 32, "tile": 32, "num_warps": 1, "num_stages": 1}
BACKWARD = {"block": 32, "tile": 16, "num_warps": 1, "num_stages": 1}


def linear_scan_triton(
    k: Float[Tensor, "batch time width"],
    v: Float[Tensor, "batch time width"],
    decay: Float[Tensor, " width"],
    initial_state: Float[Tensor, "batch width"],
    valid: Bool[Tensor, "batch time"] | None,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
    """The state after each step and after the last one; float32 on a GPU.

    Gradients reach k, v, decay and initial_state, once (no second derivative), and are zero at masked steps
    whatever their inputs hold. The first call of a width (or of other distances between steps) compiles for some
    seconds, unless an earlier process left its machine code on disk.

    Raises:
        ValueError: Tensors that are not float32, or not on a GPU while Triton's interpreter is off.
    """
    for name, tensor in (("k", k), ("v", v), ("decay", decay), ("initial_state", initial_state)):
        if tensor.dtype != torch.float32 or not (tensor.is_cuda or INTERPRETED):
            raise ValueError(
                f"the Triton scan takes float32 tensors on a GPU, got {name} in {tensor.dtype} on "
                f"{tensor.device.type}; use backend='torch'"
            )
    states, final_state = _scan(k, v, decay, initial_state, valid)
    return states, final_state


def _dense(tensor: Tensor) -> Tensor:
    """The tensor with neighbouring channels: the kernels take every other stride as it is."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _grid(states: Tensor, block: int) -> tuple[int]:
    """A program for each row and block of channels; blocks of one row side by side, as they lie in memory."""
    batch, _, width = states.shape
    return (batch * -(-width // block),)


def _mask(k: Tensor, valid: Tensor | None) -> Tensor:
    """The mask as bytes; an absent one is a placeholder that is never read."""
    return k if valid is None else valid.contiguous().view(torch.uint8)


@torch.library.custom_op("asnn_goose::linear_scan", mutates_args=())
def _scan(k: Tensor, v: Tensor, decay: Tensor, initial_state: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """All states and the last one."""
    key, value = _dense(k), _dense(v)
    states, final_state = _results(k, initial_state)
    with torch.cuda.device_of(k):
        scan_kernel[_grid(states, FORWARD["block"])](
            key, value, decay.contiguous(), initial_state.contiguous(), _mask(k, valid), states, final_state,
            key.stride(0), value.stride(0), k.shape[1],
            width=k.shape[2], k_time=key.stride(1), v_time=value.stride(1), masked=valid is not None, **FORWARD,
        )  # fmt: skip
    return states, final_state


def _results(*like: Tensor) -> tuple[Tensor, ...]:
    """Room for a dense tensor like each of those given."""
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in like)


@_scan.register_fake
def _(k, v, decay, initial_state, valid):  # type: ignore[no-untyped-def]
    return _results(k, initial_state)


@torch.library.custom_op("asnn_goose::linear_scan_backward", mutates_args=())
def _scan_backward(
    k: Tensor, v: Tensor, decay: Tensor, initial_state: Tensor, valid: Tensor | None, states: Tensor,
    states_gradient: Tensor, final_gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of k, v, decay and the initial state."""
    key, value, arriving = _dense(k), _dense(v), _dense(states_gradient)
    k_gradient, v_gradient, shares, initial_gradient = _results(k, v, initial_state, initial_state)
    with torch.cuda.device_of(k):
        reverse_scan_kernel[_grid(states, BACKWARD["block"])](
            key, value, decay.contiguous(), initial_state.contiguous(), _mask(k, valid), states, arriving,
            final_gradient.contiguous(), k_gradient, v_gradient, shares, initial_gradient,
            key.stride(0), value.stride(0), arriving.stride(0), k.shape[1],
            width=k.shape[2], k_time=key.stride(1), v_time=value.stride(1), states_time=arriving.stride(1),
            masked=valid is not None, **BACKWARD,
        )  # fmt: skip
    return k_gradient, v_gradient, shares.sum(dim=0), initial_gradient


@_scan_backward.register_fake
def _(k, v, decay, initial_state, *_):  # type: ignore[no-untyped-def]
    return _results(k, v, decay, initial_state)


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[0])


def _differentiate(ctx: Any, states_gradient: Tensor | None, final_gradient: Tensor | None) -> tuple[Any, ...]:
    *_, initial_state, _, states = ctx.saved_tensors
    if states_gradient is None:
        states_gradient = torch.zeros_like(states)
    if final_gradient is None:
        final_gradient = torch.zeros_like(initial_state)
    return *_scan_backward(*ctx.saved_tensors, states_gradient, final_gradient), None


torch.library.register_autograd("asnn_goose::linear_scan", _differentiate, setup_context=_keep)
