"""All that stands between a mixer's projections and its recurrence, on an NVIDIA GPU as one operator each way.

Short convolution, rotary positions, spike encoding of k and v, and k's length norm: the projections are read once and
only results are written, where torch.compile writes float32 arrays of all channels in between. The backward computes
anew what it needs, and leaves one gradient for all columns.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from asnn_goose.kernels.mixer_inputs_triton_kernels import (
    convolution_backward_kernel,
    site_backward_kernel,
    site_kernel,
)
from asnn_goose.kernels.site_encoding import SiteEncoding, encoding_choices, own_factors

DTYPES = (torch.float32, torch.bfloat16)
# Halves of a head are read in 16 bytes a thread.
LEAST_HEAD, MOST_HEAD = 16, 256
# A token's k lies in one program's registers, its heads rounded up to a power of two.
MOST_STATE_WIDTH = 2_048
# Spikes leave in int8; a thread keeps the gradients of all taps of its channels.
MOST_LEVELS, MOST_TAPS = 127, 8
# Up to here, edges are counted; with more levels one division is cheaper.
COMPARED_LEVELS = 4
# Numbers of a program's tile, and its warps; backward a tile keeps twice as many arrays.
READ_NUMBERS, STATE_NUMBERS, SITE_WARPS = 2_048, 4_096, 4
BACKWARD_NUMBERS, BACKWARD_WARPS = 2_048, 4
# Heads of r that a program takes one after the other, for which it reads the angles once.
MOST_TURNS = 3
# Numbers of each half of a head in a tile, four a thread: each then has sums of its own.
CONVOLUTION_NUMBERS, CONVOLUTION_WARPS = 512, 4
# Programs stay from their first token to their last, since each leaves a row of partial sums: all fit an H200 at once.
MULTIPROCESSORS, RESIDENT_PROGRAMS = 132, 3


class MixerInputs(NamedTuple):
    """What the recurrence takes, the remaining columns, and the spikes, which are empty where nothing encodes."""

    receptance: Float[Tensor, "batch time read"]
    key: Float[Tensor, "batch time state"]
    value: Float[Tensor, "batch time state"]
    rest: Float[Tensor, "batch time rest"]
    key_spikes: Int8[Tensor, "batch time state"]
    value_spikes: Int8[Tensor, "batch time state"]


def mixer_inputs_triton(
    projected: Float[Tensor, "batch time columns"],
    taps: Float[Tensor, "taps channels"],
    tail: Float[Tensor, "batch earlier channels"],
    tables: tuple[Float[Tensor, "*rows time pairs"], Float[Tensor, "*rows time pairs"]] | None,
    heads: tuple[int, int, int],
    encodings: tuple[SiteEncoding | None, SiteEncoding | None],
    threshold_range: tuple[float, float],
    dtype: torch.dtype,
) -> MixerInputs:
    """r, k and v in `dtype`, what stands behind them in `projected`, and the int8 spikes of k and v.

    Convolved with `taps` behind `tail` (the latest first), r and k turned by `tables` (cosine, sine), k and v encoded,
    k divided by its length where that exceeds 1; in float32 from `projected` to the results. All floating inputs but
    the tables have gradients, those of taps summed in the same order every time.

    Args:
        projected: r, k and v side by side, and any further columns, which are passed on.
        taps: One row a place, the present one's first.
        tail: What came before.
        tables: Cosine and sine of each position, for all rows alike or one by one, or None.
        heads: Heads of r, heads of k, and their width.
        encodings: How k and v are encoded; None stays dense.
        threshold_range: Least and most threshold.
        dtype: float32 or bfloat16.

    Raises:
        ValueError: Sizes or dtypes that the kernels are not written for, as `refusal` tells.
    """
    reason = refusal(projected, taps, heads, encodings)
    if reason is not None or dtype not in DTYPES:
        taken = reason or f"float32 or bfloat16, got {dtype}"
        raise ValueError(f"the fused inputs of a mixer take {taken}: use the torch backend")
    cosine, sine = tables or (None, None)
    choices = [choice for encoding in encodings for choice in encoding_choices(encoding)]
    tail = tail.to(projected.dtype)
    choices += threshold_range
    return MixerInputs(
        *_inputs(projected, taps, tail, cosine, sine, own_factors(encodings), list(heads), choices, dtype)
    )


def refusal(
    projected: Tensor,
    taps: Tensor,
    heads: tuple[int, int, int],
    encodings: tuple[SiteEncoding | None, SiteEncoding | None],
) -> str | None:
    """What the kernels would have to be given instead, or None where they serve."""
    width = heads[2]
    if len(taps) > MOST_TAPS:
        return f"at most {MOST_TAPS} taps, got {len(taps)}"
    if projected.dtype not in DTYPES or taps.dtype != torch.float32:
        return f"float32 or bfloat16 projections and float32 taps, got {projected.dtype} and {taps.dtype}"
    if not LEAST_HEAD <= width <= MOST_HEAD or width & (width - 1):
        return f"powers of two from {LEAST_HEAD} to {MOST_HEAD} as width of a head, got {width}"
    if _power_of_two(heads[1]) * width > MOST_STATE_WIDTH:
        return f"at most {MOST_STATE_WIDTH} channels of k, got {heads[1]} heads of {width}"
    if any(encoding is not None and not 1 <= encoding.levels <= MOST_LEVELS for encoding in encodings):
        return f"1 to {MOST_LEVELS} levels, got {[encoding and encoding.levels for encoding in encodings]}"
    return None


def _of_site(own: Tensor | None, index: int) -> Tensor | None:
    """The number of k (index 1) or v (2), None for r or where no site has one."""
    return None if own is None or index == 0 else own[index - 1 :]


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


class _Site:
    """How one site is cut into programs, and what its kernels are told."""

    def __init__(self, index: int, heads: list[int], choices: list[float], count: int, turned: bool, rest: int) -> None:
        read_heads, state_heads, width = heads
        self.width, self.heads = width, read_heads if index == 0 else state_heads
        self.start = (0, read_heads, read_heads + state_heads)[index] * width
        # r is never encoded.
        levels, alpha, self.limit, self.gradient_scale, scaled = [*[0.0] * 5, *choices][5 * index :][:5]
        self.span, self.turns = _power_of_two(self.heads), 1
        if index == 0:
            self.span = min(self.heads & -self.heads, max(1, MOST_HEAD // width))
            self.turns = max(turns for turns in range(1, MOST_TURNS + 1) if self.heads // self.span % turns == 0)
        self.threshold = (alpha, *choices[-2:])
        self.constants: dict[str, Any] = {
            "start": self.start, "heads": self.heads, "half": width // 2, "span": self.span, "count": count,
            "turned": turned and index < 2, "bounded": index == 1, "levels": int(levels),
            "compared": COMPARED_LEVELS, "scaled": bool(scaled),
            "rest_width": rest if index == 2 else 0, "rest_block": _power_of_two(max(rest, 1)),
        }  # fmt: skip

    def tile(self, numbers: int) -> int:
        """Tokens of a program."""
        return max(1, numbers // (self.span * self.width))

    def grid(self, projected: Tensor, numbers: int) -> tuple[int, int, int]:
        """Programs over tokens, rows and heads."""
        batch, time = projected.shape[:2]
        return -(-time // self.tile(numbers)), batch, -(-self.heads // (self.span * self.turns))


def _rows(tensor: Tensor) -> Tensor:
    """The tensor as (tokens width) with neighbouring channels: the kernels take any distance between tokens."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def _table(table: Tensor | None) -> tuple[Tensor | None, int]:
    """A table with neighbouring pairs and tokens, and the distance between its rows: 0 where all are alike."""
    if table is None:
        return None, 0
    if table.dim() == 3 and (len(table) == 1 or table.stride(0) == 0):
        table = table[0]
    table = table.contiguous()
    return table, 0 if table.dim() == 2 else table.stride(0)


def _on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Kernels start on the current GPU, which need not be the tensor's; Triton's interpreter knows none."""
    return torch.cuda.device_of(tensor) if tensor.is_cuda else nullcontext()


@torch.library.custom_op("asnn_goose::mixer_inputs", mutates_args=())
def _inputs(
    projected: Tensor, taps: Tensor, tail: Tensor, cosine: Tensor | None, sine: Tensor | None, own: Tensor | None,
    heads: list[int], choices: list[float], dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `MixerInputs`; `choices` are five numbers a site, then the least and the most threshold."""
    flat, taps, tail = _rows(projected), taps.contiguous(), tail.contiguous()
    (cosine, distance), (sine, _) = _table(cosine), _table(sine)
    r, k, v, rest, key_spikes, value_spikes = _results(projected, taps, heads, choices, dtype)
    made = r, k, v
    spikes = (None, key_spikes, value_spikes)
    with _on_device_of(projected):
        for index in range(3):
            site = _Site(index, heads, choices, len(taps), cosine is not None, rest.shape[2])
            numbers = STATE_NUMBERS if index else READ_NUMBERS
            site_kernel[site.grid(projected, numbers)](
                flat, taps, tail, cosine, sine, _of_site(own, index), made[index], spikes[index], rest,
                projected.shape[1], flat.stride(0), distance, taps.shape[1], *site.threshold,
                turns=site.turns, tokens=site.tile(numbers), num_warps=SITE_WARPS, **site.constants,
            )  # fmt: skip
    return r, k, v, rest, key_spikes, value_spikes


def _results(
    projected: Tensor, taps: Tensor, heads: list[int], choices: list[float], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Room for everything `_inputs` returns."""
    batch, time, columns = projected.shape
    read, state = heads[0] * heads[2], heads[1] * heads[2]
    widths = [state if choices[place] else 0 for place in (0, 5)]
    return (
        *(projected.new_empty(batch, time, width, dtype=dtype) for width in (read, state, state)),
        projected.new_empty(batch, time, columns - taps.shape[1]),
        *(projected.new_empty(batch, time, width, dtype=torch.int8) for width in widths),
    )


@_inputs.register_fake
def _(projected, taps, tail, cosine, sine, own, heads, choices, dtype):  # type: ignore[no-untyped-def]
    return _results(projected, taps, heads, choices, dtype)


@torch.library.custom_op("asnn_goose::mixer_inputs_backward", mutates_args=())
def _inputs_backward(
    projected: Tensor, taps: Tensor, tail: Tensor, cosine: Tensor | None, sine: Tensor | None, own: Tensor | None,
    read_arriving: Tensor, key_arriving: Tensor, value_arriving: Tensor, rest_arriving: Tensor,
    heads: list[int], choices: list[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `projected`, taps and tail."""
    flat, taps, tail = _rows(projected), taps.contiguous(), tail.contiguous()
    (cosine, distance), (sine, _) = _table(cosine), _table(sine)
    read_arriving, rest_arriving = read_arriving.contiguous(), rest_arriving.contiguous()
    batch, time, columns = projected.shape
    count, channels = taps.shape
    read, state, half = heads[0] * heads[2], heads[1] * heads[2], heads[2] // 2
    gradient, tail_gradient = projected.new_empty(projected.shape), torch.empty_like(tail)
    convolved = projected.new_empty(batch, time, 2 * state)
    tokens = CONVOLUTION_NUMBERS // half
    resident = max(1, MULTIPROCESSORS * RESIDENT_PROGRAMS // (heads[0] + 2 * heads[1]))
    programs = min(resident, batch * -(-(time + count - 1) // tokens))
    partial = taps.new_empty(programs, *taps.shape)
    with _on_device_of(projected):
        for index, arriving in ((1, key_arriving), (2, value_arriving)):
            site = _Site(index, heads, choices, count, cosine is not None, columns - channels)
            site_backward_kernel[site.grid(projected, BACKWARD_NUMBERS)](
                flat, taps, tail, cosine, sine, _of_site(own, index), arriving.contiguous(), convolved,
                rest_arriving, gradient,
                time, flat.stride(0), distance, channels, *site.threshold, site.limit, site.gradient_scale,
                place=index - 1, tokens=site.tile(BACKWARD_NUMBERS), num_warps=BACKWARD_WARPS, **site.constants,
            )  # fmt: skip
        convolution_backward_kernel[programs, heads[0] + 2 * heads[1]](
            flat, taps, tail, cosine, sine, read_arriving, convolved, gradient, tail_gradient, partial,
            batch, time, flat.stride(0), distance, read, state, channels, columns,
            half=half, tokens=tokens, count=count, turned=cosine is not None,
            num_warps=CONVOLUTION_WARPS,
        )  # fmt: skip
    return gradient, partial.sum(0), tail_gradient


@_inputs_backward.register_fake
def _(projected, taps, tail, *_):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(part, memory_format=torch.contiguous_format) for part in (projected, taps, tail))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, heads, choices, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[4:])
    ctx.save_for_backward(*tensors)
    ctx.choices = heads, choices
    ctx.like = [(part.shape, part.dtype) for part in output[:4]]


def _differentiate(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    projected, *others = ctx.saved_tensors
    given = [
        projected.new_zeros(shape, dtype=dtype) if part is None else part
        for part, (shape, dtype) in zip(arriving[:4], ctx.like, strict=True)
    ]
    return (*_inputs_backward(projected, *others, *given, *ctx.choices), *[None] * 6)


torch.library.register_autograd("asnn_goose::mixer_inputs", _differentiate, setup_context=_keep)
