"""The two Triton kernels of silu(gate) * up where gate and up stand side by side in one row."""

from typing import no_type_check

from asnn_goose.errors import MachineError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise MachineError(
        f"Triton's swiglu needs triton, which cannot be imported ({error}): use a CUDA build of torch on Linux"
    ) from error


@triton.jit
@no_type_check
def _places(rows, width, tokens: tl.constexpr, columns: tl.constexpr):
    """The tokens and columns of this program's tile, and where it lies within both."""
    token = tl.program_id(0).to(tl.int64) * tokens + tl.arange(0, tokens)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    return token[:, None], column[None, :], (token < rows)[:, None] & (column < width)[None, :]


@triton.jit
@no_type_check
def swiglu_kernel(both, hidden, rows, width, stride, tokens: tl.constexpr, columns: tl.constexpr):
    """silu(gate) * up."""
    token, column, inside = _places(rows, width, tokens, columns)
    gate = tl.load(both + token * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + token * stride + width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(hidden + token * width + column, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
@no_type_check
def swiglu_backward_kernel(
    both, hidden_gradient, both_gradient, rows, width, stride, tokens: tl.constexpr, columns: tl.constexpr
):
    """The gradients of gate and up, side by side as they are."""
    token, column, inside = _places(rows, width, tokens, columns)
    gate = tl.load(both + token * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + token * stride + width + column, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(hidden_gradient + token * width + column, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    at_gate = given * up * share * (1.0 + gate * (1.0 - share))
    tl.store(both_gradient + token * stride + column, at_gate, mask=inside)
    tl.store(both_gradient + token * stride + width + column, given * gate * share, mask=inside)
