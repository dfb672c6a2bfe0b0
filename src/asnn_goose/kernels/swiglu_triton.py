"""silu(gate) * up on an NVIDIA GPU where both come from one product: each number is read and written once, both ways.

torch.compile would write the gradient of the joined rows from two masked halves, at almost twice the time.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from asnn_goose.kernels.swiglu_triton_kernels import swiglu_backward_kernel, swiglu_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A tile of 2,048 numbers: 16 a thread, in reads of 16 bytes.
TOKENS, COLUMNS, WARPS = 8, 256, 4


def swiglu_triton(both: Float[Tensor, "*batch columns"], width: int) -> Float[Tensor, "*batch width"]:
    """Silu of the first `width` columns times the `width` after them; what stands behind is not read.

    Computed in float32, in the dtype of `both`; differentiable once (GLU variants, Shazeer 2020).

    Raises:
        ValueError: Fewer than 2 * width columns, or a dtype that the kernels are not written for.
    """
    if width < 1 or both.shape[-1] < 2 * width:
        raise ValueError(f"swiglu of width {width} needs {2 * width} columns, gate then up, got {both.shape[-1]}")
    if both.dtype not in DTYPES:
        raise ValueError(f"the Triton swiglu takes float32, bfloat16 or float16, got {both.dtype}: use torch")
    rows = both.reshape(-1, both.shape[-1]).contiguous()
    hidden: Tensor = _swiglu(rows, width)
    return hidden.view(*both.shape[:-1], width)


def _grid(rows: Tensor, width: int) -> tuple[int, int]:
    return -(-len(rows) // TOKENS), -(-width // COLUMNS)


@torch.library.custom_op("asnn_goose::swiglu", mutates_args=())
def _swiglu(rows: Tensor, width: int) -> Tensor:
    """The forward on dense rows."""
    hidden = rows.new_empty(len(rows), width)
    if len(rows):
        with torch.cuda.device_of(rows):
            swiglu_kernel[_grid(rows, width)](
                rows, hidden, len(rows), width, rows.stride(0), tokens=TOKENS, columns=COLUMNS, num_warps=WARPS
            )
    return hidden


@_swiglu.register_fake
def _(rows, width):  # type: ignore[no-untyped-def]
    return rows.new_empty(len(rows), width)


@torch.library.custom_op("asnn_goose::swiglu_backward", mutates_args=())
def _swiglu_backward(rows: Tensor, gradient: Tensor, width: int) -> Tensor:
    """The gradient of the rows; 0 behind the columns that are read."""
    found, gradient = torch.empty_like(rows), gradient.contiguous()
    found[:, 2 * width :].zero_()
    if len(rows):
        with torch.cuda.device_of(rows):
            swiglu_backward_kernel[_grid(rows, width)](
                rows, gradient, found, len(rows), width, rows.stride(0), tokens=TOKENS, columns=COLUMNS,
                num_warps=WARPS,
            )  # fmt: skip
    return found


@_swiglu_backward.register_fake
def _(rows, gradient, width):  # type: ignore[no-untyped-def]
    return torch.empty_like(rows)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, ctx.width = inputs
    ctx.save_for_backward(rows)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (rows,) = ctx.saved_tensors
    return _swiglu_backward(rows, gradient, ctx.width), None


torch.library.register_autograd("asnn_goose::swiglu", _differentiate, setup_context=_keep)
