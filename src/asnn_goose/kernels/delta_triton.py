"""The generalised delta rule on an NVIDIA GPU, as one operator that torch.compile does not look into."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asnn_goose.kernels.delta_triton_kernels import VERSION, carry_kernel, read_kernel, solve_kernel
from asnn_goose.kernels.delta_triton_kernels_backward import (
    carry_backward_kernel,
    gradients_kernel,
    read_backward_kernel,
)

NO_WGMMA = "DISABLE_MMA_V3"
WIDTHS = (16, 32, 64, 128)
DTYPES = (torch.float32, torch.bfloat16)
# A matrix unit takes at least 16 steps.
LEAST_CHUNK, MOST_CHUNK = 16, 32
# Columns of values carried by one program: the wider block where even so the 132 multiprocessors of an H200 are busy.
NARROW, WIDE, ENOUGH_PROGRAMS = 16, 32, 132
# Whether the transpose of a tile in bfloat16 is made from the tile; else it is loaded too.
TURN = True
# In bfloat16 at widths to 64; a limit on registers makes room for a second or third program on a multiprocessor.
MOST_WARPS = 8
CARRY = {"num_warps": 2, "stages": 3}
CARRY_BACKWARD = {"num_warps": 2, "stages": 3}
# tf32 alone keeps 11 bits: enough beside bfloat16, not for float32.
INVERSE_PRECISION = {torch.float32: "tf32x3", torch.bfloat16: "tf32"}


@dataclass(frozen=True)
class Launch:
    """How the kernels other than the carries are compiled and launched.

    Attributes:
        wgmma: Whether Triton may use Hopper's asynchronous matrix instruction.
        members: Members of a group that are read by one matrix product in bfloat16.
        solve: Of the kernel of that name, as the others.
        read: Reading.
        read_backward: The reads' part of the backward.
        gradients: The rest of the backward.
    """

    wgmma: bool
    members: int
    solve: dict[str, int]
    read: dict[str, int]
    read_backward: dict[str, int]
    gradients: dict[str, int]


VERIFIED = ("3.6.0",)
"""Versions of Triton whose code for `FAST` obeys the GPU's laws on an H200, float32 and bfloat16, widths of 16 to 128.

With other settings, as near as twice the warps in bfloat16 at a width of 64, 3.6.0 writes code with wgmma that gives
wrong gradients or illegal addresses. Run the laws there before adding a version or changing a setting."""
FAST = Launch(
    wgmma=True, members=4, solve={"num_warps": 4, "num_stages": 1}, read={"num_warps": 4, "num_stages": 1},
    read_backward={"num_warps": 8, "num_stages": 1, "maxnreg": 128},
    gradients={"num_warps": 4, "num_stages": 1, "maxnreg": 168},
)  # fmt: skip
# Without wgmma all settings that were tried were right, and these the fastest: a third slower than FAST.
SAFE = Launch(
    wgmma=False, members=1, solve={"num_warps": 2, "num_stages": 1}, read={"num_warps": 2, "num_stages": 1},
    read_backward={"num_warps": 4, "num_stages": 1}, gradients={"num_warps": 4, "num_stages": 1, "maxnreg": 168},
)  # fmt: skip


@cache
def launch_of(device: torch.device) -> Launch:
    """What serves on a device with this version of Triton; in Triton's interpreter it makes no difference."""
    if device.type != "cuda":
        return FAST
    hopper = torch.cuda.get_device_capability(device) == (9, 0)
    return FAST if hopper and VERSION in VERIFIED else SAFE


def delta_rule_triton(
    receptance: Float[Tensor, "batch time heads group key"],
    key: Float[Tensor, "batch time heads key"],
    value: Float[Tensor, "batch time heads value"],
    log_decay: Float[Tensor, "batch time heads"],
    erase: Float[Tensor, "batch time heads"],
    write: Float[Tensor, "batch time heads"],
    initial_state: Float[Tensor, "batch heads value key"],
    valid: Bool[Tensor, "batch time"] | None,
) -> tuple[Float[Tensor, "batch time heads group value"], Float[Tensor, "batch heads value key"]]:
    """As `delta_rule_reference`, differentiable once; what is read in the receptance's dtype, the state in float32.

    Raises:
        ValueError: A head width or a dtype that the kernels are not written for.
    """
    for name, width in (("key", key.shape[-1]), ("value", value.shape[-1])):
        if width not in WIDTHS:
            raise ValueError(f"the Triton delta rule takes {name} widths {WIDTHS}, got {width}: use the torch backend")
    inputs = (receptance, key, value, log_decay, erase, write)
    if initial_state.dtype != torch.float32 or any(tensor.dtype not in DTYPES for tensor in inputs):
        found = ", ".join(sorted({str(tensor.dtype) for tensor in (*inputs, initial_state)}))
        raise ValueError(
            f"the Triton delta rule takes a float32 state and float32 or bfloat16 inputs, got {found}: "
            "use the torch backend"
        )
    if valid is not None:
        keep = valid.unsqueeze(-1)
        log_decay, erase, write = log_decay * keep, erase * keep, write * keep
    read, state, *_ = _rule(receptance, key, value, log_decay, erase, write, initial_state)
    return read, state


class _Plan:
    """How the kernels of one call are cut: sizes, strides and grids."""

    def __init__(self, receptance: Tensor, key: Tensor, value: Tensor) -> None:
        batch, time, heads, group, width = receptance.shape
        self.chunk = LEAST_CHUNK if time <= LEAST_CHUNK else MOST_CHUNK
        self.rows, self.chunks = batch * heads, -(-time // self.chunk)
        columns = value.shape[-1]
        block = WIDE if columns >= WIDE and self.rows * columns // WIDE >= ENOUGH_PROGRAMS else NARROW
        self.kind = receptance.dtype if key.dtype == value.dtype == receptance.dtype else torch.float32
        self.everywhere, self.columns = (self.chunks, self.rows), (columns // block, self.rows)
        self.r, self.k, self.v = receptance.stride()[:4], key.stride()[:3], value.stride()[:3]
        self.sizes = time, heads
        self.launch = launch_of(key.device)
        stacked = min(self.launch.members, 1 << (group - 1).bit_length()) if self.kind == torch.bfloat16 else 1
        self.members = {"group": group, "members": stacked}
        # Numbers of twice the size, and tiles of twice the width, take twice the threads to hold, and every register.
        self.warps = (1 if self.kind == torch.bfloat16 else 2) * (1 if max(width, columns) <= 64 else 2)
        shared = {"width": width, "value_width": columns}
        self.constants, self.carried = (
            shared | {"chunk": self.chunk, "turned": TURN and self.kind == torch.bfloat16},
            shared | {"block": block},
        )

    def settings(self, settings: dict[str, int]) -> dict[str, int | None]:
        """The settings of a kernel for this call."""
        limit = settings.get("maxnreg") if self.warps == 1 else None
        return settings | {"num_warps": min(MOST_WARPS, settings["num_warps"] * self.warps), "maxnreg": limit}

    def buffer(self, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Room for an array of each cell, of the kind that passes between kernels or as asked."""
        return like.new_empty(self.rows * self.chunks, *shape, dtype=dtype or self.kind)


@contextmanager
def _matrix_instructions(wgmma: bool) -> Iterator[None]:
    """Within it kernels are compiled with wgmma or without, for which Triton has no option but a variable."""
    before = os.environ.get(NO_WGMMA)
    if not wgmma:
        os.environ[NO_WGMMA] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(NO_WGMMA, None)
        else:
            os.environ[NO_WGMMA] = before


def _dense(*tensors: Tensor) -> list[Tensor]:
    """The tensors with neighbouring channels: the kernels take every other stride as it is."""
    return [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]


@torch.library.custom_op("asnn_goose::delta_rule", mutates_args=())
def _rule(
    receptance: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, erase: Tensor, write: Tensor,
    initial_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What is read and the final state; then what the backward needs: T, E, U, exp(p_last) and the states."""
    r, k, v = _dense(receptance, key, value)
    log_w, a, b, initial = (part.contiguous() for part in (log_decay, erase, write, initial_state))
    plan = _Plan(r, k, v)
    read, final, solved, erasing, new, kept, states = _results(receptance, key, value)
    added = torch.empty_like(states)
    with torch.cuda.device_of(k), _matrix_instructions(plan.launch.wgmma):
        solve_kernel[plan.everywhere](
            k, v, log_w, a, b, solved, erasing, added, kept, *plan.k, *plan.v, *plan.sizes, **plan.constants,
            levels=plan.chunk.bit_length() - 1, inverse=INVERSE_PRECISION[plan.kind],
            **plan.settings(plan.launch.solve),
        )  # fmt: skip
        carry_kernel[plan.columns](
            initial, erasing, added, kept, states, final, plan.chunks, **plan.carried, **plan.settings(CARRY)
        )
        read_kernel[plan.everywhere](
            r, k, v, log_w, a, b, solved, states, new, read,
            *plan.r, *plan.k, *plan.v, *plan.sizes, **plan.members, **plan.constants, **plan.settings(plan.launch.read),
        )  # fmt: skip
    return read, final, solved, erasing, new, kept, states


def _results(receptance: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Room for everything `_rule` returns."""
    batch, time, heads, group, width = receptance.shape
    columns, plan = value.shape[-1], _Plan(receptance, key, value)
    return (
        receptance.new_empty(batch, time, heads, group, columns),
        value.new_empty(batch, heads, columns, width, dtype=torch.float32),
        plan.buffer(key, plan.chunk, plan.chunk),
        plan.buffer(key, width, width),
        plan.buffer(key, plan.chunk, columns),
        plan.buffer(key, dtype=torch.float32),
        plan.buffer(key, columns, width),
    )


@_rule.register_fake
def _(receptance, key, value, log_decay, erase, write, initial_state):  # type: ignore[no-untyped-def]
    return _results(receptance, key, value)


@torch.library.custom_op("asnn_goose::delta_rule_backward", mutates_args=())
def _rule_backward(
    receptance: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, erase: Tensor, write: Tensor,
    solved: Tensor, erasing: Tensor, new: Tensor, kept: Tensor, states: Tensor,
    read_gradient: Tensor, state_gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of the inputs, in their dtypes, and of the initial state."""
    r, k, v = _dense(receptance, key, value)
    log_w, a, b = (part.contiguous() for part in (log_decay, erase, write))
    read_gradient, state_gradient = read_gradient.contiguous(), state_gradient.contiguous()
    plan = _Plan(r, k, v)
    source, reached, after = torch.empty_like(new), torch.empty_like(states), torch.empty_like(states)
    written, decayed = plan.buffer(k, plan.chunk, k.shape[-1]), plan.buffer(k, plan.chunk, dtype=torch.float32)
    *gradients, initial_gradient = _gradients(receptance, key, value, log_decay, erase, write, state_gradient)
    with torch.cuda.device_of(k), _matrix_instructions(plan.launch.wgmma):
        read_backward_kernel[plan.everywhere](
            r, k, log_w, a, read_gradient, solved, states, new, gradients[0], source, reached, written, decayed,
            *plan.r, *plan.k, *plan.sizes, **plan.members, **plan.constants, **plan.settings(plan.launch.read_backward),
        )  # fmt: skip
        carry_backward_kernel[plan.columns](
            state_gradient, erasing, reached, kept, after, initial_gradient, plan.chunks,
            **plan.carried, **plan.settings(CARRY_BACKWARD),
        )  # fmt: skip
        gradients_kernel[plan.everywhere](
            k, v, log_w, a, b, solved, states, new, source, after, written, decayed, *gradients[1:],
            *plan.k, *plan.v, *plan.sizes, **plan.constants, **plan.settings(plan.launch.gradients),
        )  # fmt: skip
    r_gradient, k_gradient, v_gradient, log_gradient, a_gradient, b_gradient = gradients
    return r_gradient, k_gradient, v_gradient, log_gradient, a_gradient, b_gradient, initial_gradient


def _gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
    """Room for a dense gradient of each input."""
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs)


@_rule_backward.register_fake
def _(*tensors):  # type: ignore[no-untyped-def]
    return _gradients(*tensors[:6], tensors[-1])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6], *output[2:])
    ctx.like = inputs[-1].shape, output[0].shape, output[0].dtype


def _differentiate(ctx: Any, read_gradient: Tensor | None, state_gradient: Tensor | None, *_: None) -> tuple[Any, ...]:
    like = ctx.saved_tensors[-1]
    state_shape, read_shape, read_dtype = ctx.like
    if read_gradient is None:
        read_gradient = like.new_zeros(read_shape, dtype=read_dtype)
    if state_gradient is None:
        state_gradient = like.new_zeros(state_shape, dtype=torch.float32)
    return tuple(_rule_backward(*ctx.saved_tensors, read_gradient, state_gradient))


torch.library.register_autograd("asnn_goose::delta_rule", _differentiate, setup_context=_keep)
