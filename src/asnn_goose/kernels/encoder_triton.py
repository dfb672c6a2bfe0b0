"""The spike encoder's staircase with a fixed threshold factor on an NVIDIA GPU, if asked behind a norm, in one pass.

Each way is one operator that torch.compile does not look into and one kernel: the activations are read once, and only
spikes, steps and gradients are written, where torch makes a pass over memory for each operation.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Real
from torch import Tensor

from asnn_goose.kernels.encoder_triton_kernels import encode_backward_kernel, encode_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Whole numbers that a type of the values holds without a gap.
MOST_LEVELS = {torch.float32: 2**24, torch.bfloat16: 2**8, torch.float16: 2**11, torch.int8: 2**7 - 1}
# A token lies in the registers of at most 16 warps.
MOST_WIDTH = 8_192
# Numbers of a tile for each warp, 32 a thread: enough bytes on their way from memory without spilled registers.
WARP_NUMBERS = 1024
# A warp sums as many channels alone; where a thread keeps two gradients' sums as well, half as many of two tokens.
WARP_CHANNELS = {"forward": 1024, "none": 1024, "rms": 1024, "layer": 512}
# A norm's backward stays on the GPU from its first token to its last, since each program leaves a row of partial sums:
# with 12 warps on each multiprocessor of an H200 all programs fit at once.
MULTIPROCESSORS, RESIDENT_WARPS = 132, 12
# Up to here, edges are counted; with more levels one division is cheaper.
COMPARED_LEVELS = 4
MOMENTS = {"none": 0, "rms": 1, "layer": 2}


@dataclass(frozen=True)
class Normalization:
    """What a token passes before its threshold, in float32 whatever the dtypes.

    Attributes:
        kind: `rms` is x / sqrt(mean x^2 + eps), `layer` is (x - mean x) / sqrt(var x + eps).
        weight: Factor on each channel behind it.
        bias: What each channel is moved by behind that, or None.
        eps: Keeps a silent token finite.
    """

    kind: Literal["rms", "layer"]
    weight: Float[Tensor, " width"]
    bias: Float[Tensor, " width"] | None
    eps: float


def encode_triton(
    x: Float[Tensor, "*batch width"],
    alpha: float,
    threshold_range: tuple[float, float],
    levels: int,
    limit: float,
    gradient_scale: float,
    values_dtype: torch.dtype | None = None,
) -> tuple[Real[Tensor, "*batch width"], Float[Tensor, "*batch 1"]]:
    """Integer spikes in `values_dtype` (None is that of x), and each token's step in float32.

    Statistics are float32. The gradient passes where |x| is at most `limit` steps, times `gradient_scale` over the
    step, and is zero elsewhere (the clipped straight-through estimator; an infinite limit does not clip). The step has
    no gradient, and int8 spikes have none either: ask for floating ones to train. A token with NaN or infinity in it,
    or a sum of magnitudes beyond float32, becomes NaN altogether, spikes and step; int8 spikes of it are 0.

    Raises:
        ValueError: A dtype, a width or a number of levels that the kernels are not written for.
    """
    dtype = _checked_dtype(x, levels, values_dtype)
    values, steps, _ = _encode(
        x, None, None, "none", 0.0, alpha, *threshold_range, levels, limit, gradient_scale, dtype
    )
    return values, steps


def encode_normalized_triton(
    x: Float[Tensor, "*batch width"],
    norm: Normalization,
    alpha: float,
    threshold_range: tuple[float, float],
    levels: int,
    limit: float,
    gradient_scale: float,
    values_dtype: torch.dtype | None = None,
) -> tuple[Real[Tensor, "*batch width"], Float[Tensor, "*batch 1"]]:
    """As `encode_triton` of the normalized x, which is rounded to no narrower type on the way.

    Weight and bias have gradients, summed in the same order every time.

    Raises:
        ValueError: As `encode_triton`, or a weight or bias that does not fit x.
    """
    dtype = _checked_dtype(x, levels, values_dtype)
    width = x.shape[-1:]
    for name, part in (("weight", norm.weight), ("bias", norm.bias)):
        if part is not None and (part.shape != width or part.dtype not in DTYPES):
            raise ValueError(
                f"the norm's {name} must have shape {tuple(width)} and be float32, bfloat16 or float16, "
                f"got {tuple(part.shape)} in {part.dtype}"
            )
    values, steps, _ = _encode(
        x, norm.weight, norm.bias, norm.kind, norm.eps, alpha, *threshold_range, levels, limit, gradient_scale, dtype
    )
    return values, steps


def _checked_dtype(x: Tensor, levels: int, values_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of the values, if the kernels are written for all that is asked."""
    width = x.shape[-1]
    if x.dtype not in DTYPES:
        raise ValueError(f"the Triton encoder takes float32, bfloat16 or float16, got {x.dtype}: use the torch form")
    if not 1 <= width <= MOST_WIDTH:
        raise ValueError(f"the Triton encoder takes 1 to {MOST_WIDTH} channels, got {width}: use the torch form")
    dtype = x.dtype if values_dtype is None else values_dtype
    if dtype not in MOST_LEVELS:
        raise ValueError(f"spikes come in float32, bfloat16, float16 or int8, got {dtype}")
    if not 1 <= levels <= MOST_LEVELS[dtype]:
        raise ValueError(f"spikes in {dtype} hold 1 to {MOST_LEVELS[dtype]} levels exactly, got {levels}")
    return dtype


class _Tile:
    """How many tokens a program takes at once, with how many warps, and how many programs there are."""

    def __init__(self, tokens: int, width: int, way: str) -> None:
        self.block = 1 << (width - 1).bit_length()
        warps = max(1, self.block // WARP_CHANNELS[way])
        self.rows = max(1, warps * WARP_NUMBERS // self.block)
        self.programs = -(-tokens // self.rows)
        if way in ("rms", "layer"):
            self.programs = min(self.programs, MULTIPROCESSORS * max(1, RESIDENT_WARPS // warps))
        self.constants = {"width": width, "rows": self.rows, "block": self.block, "num_warps": warps}


def _rows(tensor: Tensor) -> Tensor:
    """The tensor as (tokens width) with neighbouring channels: the kernels take any distance between tokens."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def _on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Kernels start on the current GPU, which need not be the tensor's; Triton's interpreter knows none."""
    return torch.cuda.device_of(tensor) if tensor.is_cuda else nullcontext()


@torch.library.custom_op("asnn_goose::encode", mutates_args=())
def _encode(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, epsilon: float, alpha: float,
    least: float, most: float, levels: int, limit: float, gradient_scale: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Values and steps; then what the backward of a norm needs of each token: its divisor's inverse, and its mean."""
    flat = _rows(x)
    values, steps, moments = _results(x, norm, dtype)
    tile = _Tile(len(flat), flat.shape[1], "forward")
    with _on_device_of(x):
        encode_kernel[(tile.programs,)](
            flat, _dense(weight), _dense(bias), values, steps, moments, len(flat), flat.stride(0),
            epsilon, alpha, least, most, norm=norm, levels=levels, compared=COMPARED_LEVELS,
            whole=not dtype.is_floating_point, **tile.constants,
        )  # fmt: skip
    return values, steps, moments


def _dense(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _results(x: Tensor, norm: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Room for everything `_encode` returns."""
    batch = x.shape[:-1]
    return (
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty((*batch, 1), dtype=torch.float32),
        x.new_empty((MOMENTS[norm], math.prod(batch)), dtype=torch.float32),
    )


@_encode.register_fake
def _(x, weight, bias, norm, epsilon, alpha, least, most, levels, limit, gradient_scale, dtype):  # type: ignore[no-untyped-def]
    return _results(x, norm, dtype)


@torch.library.custom_op("asnn_goose::encode_backward", mutates_args=())
def _encode_backward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, steps: Tensor, moments: Tensor, arriving: Tensor,
    norm: str, limit: float, gradient_scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradient of x in its dtype, and those of weight and bias, where there are any, in float32."""
    flat, incoming = _rows(x), _rows(arriving)
    gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
    tile = _Tile(len(flat), flat.shape[1], norm)
    partial = steps.new_empty(tile.programs if norm != "none" else 0, _vectors(weight, bias), flat.shape[1])
    with _on_device_of(x):
        encode_backward_kernel[(tile.programs,)](
            flat, _dense(weight), _dense(bias), steps, moments, incoming, gradient, partial,
            len(flat), flat.stride(0), incoming.stride(0), limit, gradient_scale, norm=norm, **tile.constants,
        )  # fmt: skip
    return gradient, partial.sum(0)


def _vectors(weight: Tensor | None, bias: Tensor | None) -> int:
    return (weight is not None) + (bias is not None)


@_encode_backward.register_fake
def _(x, weight, bias, steps, moments, arriving, norm, limit, gradient_scale):  # type: ignore[no-untyped-def]
    gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
    return gradient, steps.new_empty(_vectors(weight, bias), x.shape[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, norm, *_, limit, gradient_scale, dtype = inputs
    values, steps, moments = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(steps, moments, *(() if dtype.is_floating_point else (values,)))
    ctx.save_for_backward(x, weight, bias, steps, moments)
    ctx.choices = norm, limit, gradient_scale


def _differentiate(ctx: Any, arriving: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 9
    if arriving is None:
        return None, None, None, *nothing
    _, weight, bias, _, _ = ctx.saved_tensors
    gradient, sums = _encode_backward(*ctx.saved_tensors, arriving, *ctx.choices)
    of_weight = None if weight is None else sums[0].to(weight.dtype)
    of_bias = None if bias is None else sums[1].to(bias.dtype)
    return gradient, of_weight, of_bias, *nothing


torch.library.register_autograd("asnn_goose::encode", _differentiate, setup_context=_keep)
