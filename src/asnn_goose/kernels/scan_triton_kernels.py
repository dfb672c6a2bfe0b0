"""The two Triton kernels of the linear scan S_t = decay * S_{t-1} + k_t * v_t on an NVIDIA GPU.

A program walks one row of the batch along time with a block of channels, a channel or two a thread, so that no step
needs another thread. Moving memory is all that takes time: a tile of steps is therefore asked for as a whole before its
first step is computed, rows lie at distances known when compiling, and the backward reads the states, which the caller
has anyway, at the tiles' edges only and computes them anew between.
"""

from typing import no_type_check

from asnn_goose.errors import MachineError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise MachineError(
        f"the Triton scan needs triton, which cannot be imported ({error}): use a CUDA build of torch on Linux, "
        "or choose the torch backend"
    ) from error

# Decided where a kernel is defined: under TRITON_INTERPRET=1 those below run on the CPU, slowly, as Python.
INTERPRETED: bool = triton.knobs.runtime.interpret


@triton.jit
@no_type_check
def steps_there(first, time, tile: tl.constexpr, whole: tl.constexpr):
    """Whether each of a tile's steps lies before the end: True when compiling a whole tile, which needs no masks."""
    there = ()
    for step in tl.static_range(tile):
        there += (True if whole else first + step < time,)
    return there


@triton.jit
@no_type_check
def live_steps(valid, first, there, masked: tl.constexpr, tile: tl.constexpr):
    """Whether each of a tile's steps changes the state."""
    live = ()
    for step in tl.static_range(tile):
        live += (tl.load(valid + first + step, mask=there[step], other=0) != 0 if masked else there[step],)
    return live


@triton.jit
@no_type_check
def take_steps(pointers, first, stride: tl.constexpr, there, inside, tile: tl.constexpr):
    """A tile's steps from `first` on; zeros behind the end."""
    places = pointers + first * stride
    taken = ()
    for step in tl.static_range(tile):
        taken += (tl.load(places + step * stride, mask=inside & there[step], other=0.0),)
    return taken


@triton.jit
@no_type_check
def block_of_row(width: tl.constexpr, block: tl.constexpr):
    """This program's row and channels, and which of those exist: all of them when compiling a width of whole blocks."""
    blocks: tl.constexpr = (width + block - 1) // block
    channels = (tl.program_id(0) % blocks) * block + tl.arange(0, block)
    inside = tl.full((block,), True, tl.int1) if width % block == 0 else channels < width
    return (tl.program_id(0) // blocks).to(tl.int64), channels, inside


@triton.jit
@no_type_check
def _advance(
    state, rate, k, v, valid, states, first, time, inside, width: tl.constexpr, k_time: tl.constexpr,
    v_time: tl.constexpr, masked: tl.constexpr, tile: tl.constexpr, whole: tl.constexpr,
):  # fmt: skip
    """The state after one tile; those on the way are stored."""
    there = steps_there(first, time, tile, whole)
    first = tl.cast(first, tl.int64)
    keys = take_steps(k, first, k_time, there, inside, tile)
    values = take_steps(v, first, v_time, there, inside, tile)
    live = live_steps(valid, first, there, masked, tile)
    # No load may sink below this line; left alone, the compiler saves registers by waiting for memory more than once.
    tl.debug_barrier()
    places = states + first * width
    for step in tl.static_range(tile):
        state = tl.where(live[step], tl.fma(rate, state, keys[step] * values[step]), state)
        tl.store(places + step * width, state, mask=inside & there[step])
    return state


@triton.jit
@no_type_check
def scan_kernel(
    k, v, decay, initial, valid, states, final, k_batch, v_batch, time,
    width: tl.constexpr, k_time: tl.constexpr, v_time: tl.constexpr,
    masked: tl.constexpr, block: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """The state after each step and after the last one."""
    row, channels, inside = block_of_row(width, block)
    k += row * k_batch + channels
    v += row * v_batch + channels
    valid += row * time
    states += row * time * width + channels
    rate = tl.load(decay + channels, mask=inside, other=0.0)
    state = tl.load(initial + row * width + channels, mask=inside, other=0.0)
    end = time // tile * tile
    for first in range(0, end, tile):
        state = _advance(
            state, rate, k, v, valid, states, first, time, inside, width, k_time, v_time, masked, tile, True
        )
    if end < time:
        state = _advance(
            state, rate, k, v, valid, states, end, time, inside, width, k_time, v_time, masked, tile, False
        )
    tl.store(final + row * width + channels, state, mask=inside)


@triton.jit
@no_type_check
def _retreat(
    flow, share, rate, start, k, v, valid, states, states_gradient, k_gradient, v_gradient, first, time, inside,
    width: tl.constexpr, k_time: tl.constexpr, v_time: tl.constexpr, states_time: tl.constexpr,
    masked: tl.constexpr, tile: tl.constexpr, whole: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before one tile from that behind it, and the decay's with the tile's share."""
    there = steps_there(first, time, tile, whole)
    first = tl.cast(first, tl.int64)
    arriving = take_steps(states_gradient, first, states_time, there, inside, tile)
    keys = take_steps(k, first, k_time, there, inside, tile)
    values = take_steps(v, first, v_time, there, inside, tile)
    live = live_steps(valid, first, there, masked, tile)
    edge = tl.load(states + (first - 1) * width, mask=inside & (first > 0), other=0.0)
    # As in `_advance`: without it the gradients are asked for only when the keys have come.
    tl.debug_barrier()
    state = tl.where(first > 0, edge, start)
    before = ()
    for step in tl.static_range(tile):
        before += (state,)
        state = tl.where(live[step], tl.fma(rate, state, keys[step] * values[step]), state)
    k_places, v_places = k_gradient + first * width, v_gradient + first * width
    for step in tl.static_range(tile - 1, -1, -1):
        mask = inside & there[step]
        flow += arriving[step]
        tl.store(k_places + step * width, tl.where(live[step], flow * values[step], 0.0), mask=mask)
        tl.store(v_places + step * width, tl.where(live[step], flow * keys[step], 0.0), mask=mask)
        share = tl.where(live[step], tl.fma(flow, before[step], share), share)
        flow = tl.where(live[step], rate * flow, flow)
    return flow, share


@triton.jit
@no_type_check
def reverse_scan_kernel(
    k, v, decay, initial, valid, states, states_gradient, final_gradient,
    k_gradient, v_gradient, decay_gradient, initial_gradient, k_batch, v_batch, states_batch, time,
    width: tl.constexpr, k_time: tl.constexpr, v_time: tl.constexpr, states_time: tl.constexpr,
    masked: tl.constexpr, block: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Every gradient, that of the decay as the share of each row."""
    row, channels, inside = block_of_row(width, block)
    once = row * width + channels
    k += row * k_batch + channels
    v += row * v_batch + channels
    valid += row * time
    states += row * time * width + channels
    states_gradient += row * states_batch + channels
    k_gradient += row * time * width + channels
    v_gradient += row * time * width + channels
    rate = tl.load(decay + channels, mask=inside, other=0.0)
    start = tl.load(initial + once, mask=inside, other=0.0)
    flow = tl.load(final_gradient + once, mask=inside, other=0.0)
    share = tl.zeros((block,), tl.float32)
    tiles = time // tile
    if tiles * tile < time:
        flow, share = _retreat(
            flow, share, rate, start, k, v, valid, states, states_gradient, k_gradient, v_gradient, tiles * tile,
            time, inside, width, k_time, v_time, states_time, masked, tile, False,
        )  # fmt: skip
    for turn in range(tiles):
        flow, share = _retreat(
            flow, share, rate, start, k, v, valid, states, states_gradient, k_gradient, v_gradient,
            (tiles - 1 - turn) * tile, time, inside, width, k_time, v_time, states_time, masked, tile, True,
        )  # fmt: skip
    tl.store(decay_gradient + once, share, mask=inside)
    tl.store(initial_gradient + once, flow, mask=inside)
