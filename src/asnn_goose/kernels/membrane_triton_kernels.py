"""The two Triton kernels of a leaky membrane with soft reset: along time, and back.

As in `scan_triton_kernels`, a program walks one row with a block of channels and asks for a tile of steps as a whole
before its first step is computed.
"""

from typing import no_type_check

from asnn_goose.errors import MachineError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise MachineError(
        f"the Triton membrane needs triton, which cannot be imported ({error}): use a CUDA build of torch on Linux"
    ) from error

from asnn_goose.kernels.scan_triton_kernels import block_of_row, live_steps, steps_there, take_steps


@triton.jit
@no_type_check
def _staircase(potential, levels: tl.constexpr, signed: tl.constexpr):
    """The spikes of a potential; comparisons leave what is not a number as it is, for the guards of training to see."""
    size = tl.floor((tl.abs(potential) if signed else potential) + 0.5)
    size = tl.where(size > levels, levels, size)
    size = tl.where(size < 0, 0.0, size)
    return tl.where(potential < 0, -size, size) if signed else size


@triton.jit
@no_type_check
def _fire(
    membrane, z, valid, values, potentials, first, time, inside, beta, levels: tl.constexpr, signed: tl.constexpr,
    width: tl.constexpr, masked: tl.constexpr, tile: tl.constexpr, whole: tl.constexpr,
):  # fmt: skip
    """The membrane after one tile, whose spikes and potentials are stored."""
    there = steps_there(first, time, tile, whole)
    first = tl.cast(first, tl.int64)
    given = take_steps(z, first, width, there, inside, tile)
    live = live_steps(valid, first, there, masked, tile)
    # No load may sink below this line.
    tl.debug_barrier()
    spike_places, potential_places = values + first * width, potentials + first * width
    for step in tl.static_range(tile):
        potential = beta * membrane + given[step]
        spikes = _staircase(potential, levels, signed)
        tl.store(spike_places + step * width, tl.where(live[step], spikes, 0.0), mask=inside & there[step])
        tl.store(potential_places + step * width, tl.where(live[step], potential, 0.0), mask=inside & there[step])
        membrane = tl.where(live[step], potential - spikes, membrane)
    return membrane


@triton.jit
@no_type_check
def fire_kernel(
    z, start, valid, values, potentials, last, time, beta, levels: tl.constexpr, signed: tl.constexpr,
    width: tl.constexpr, masked: tl.constexpr, block: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Spikes, potentials and the last membrane."""
    row, channels, inside = block_of_row(width, block)
    steps = row * time * width + channels
    z += steps
    values += steps
    potentials += steps
    valid += row * time
    membrane = tl.load(start + row * width + channels, mask=inside, other=0.0)
    end = time // tile * tile
    for first in range(0, end, tile):
        membrane = _fire(
            membrane, z, valid, values, potentials, first, time, inside, beta, levels, signed, width, masked, tile, True
        )
    if end < time:
        membrane = _fire(
            membrane, z, valid, values, potentials, end, time, inside, beta, levels, signed, width, masked, tile, False
        )
    tl.store(last + row * width + channels, membrane, mask=inside)


@triton.jit
@no_type_check
def _return(
    flow, slopes, arriving, valid, gradient, first, time, inside, beta, attached: tl.constexpr,
    width: tl.constexpr, masked: tl.constexpr, tile: tl.constexpr, whole: tl.constexpr,
):  # fmt: skip
    """The gradient of the membrane before one tile from that behind it; those of the tile's z are stored."""
    there = steps_there(first, time, tile, whole)
    first = tl.cast(first, tl.int64)
    slope = take_steps(slopes, first, width, there, inside, tile)
    given = take_steps(arriving, first, width, there, inside, tile)
    live = live_steps(valid, first, there, masked, tile)
    tl.debug_barrier()
    places = gradient + first * width
    for step in tl.static_range(tile - 1, -1, -1):
        kept = flow - slope[step] * flow if attached else flow
        found = slope[step] * given[step] + kept
        tl.store(places + step * width, tl.where(live[step], found, 0.0), mask=inside & there[step])
        flow = tl.where(live[step], beta * found, flow)
    return flow


@triton.jit
@no_type_check
def fire_backward_kernel(
    slopes, arriving, of_last, valid, gradient, of_start, time, beta, attached: tl.constexpr,
    width: tl.constexpr, masked: tl.constexpr, block: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """The gradients of z and of the first membrane."""
    row, channels, inside = block_of_row(width, block)
    steps = row * time * width + channels
    slopes += steps
    arriving += steps
    gradient += steps
    valid += row * time
    flow = tl.load(of_last + row * width + channels, mask=inside, other=0.0)
    tiles = time // tile
    if tiles * tile < time:
        flow = _return(
            flow, slopes, arriving, valid, gradient, tiles * tile, time, inside, beta, attached, width, masked, tile,
            False,
        )  # fmt: skip
    for turn in range(tiles):
        flow = _return(
            flow, slopes, arriving, valid, gradient, (tiles - 1 - turn) * tile, time, inside, beta, attached, width,
            masked, tile, True,
        )  # fmt: skip
    tl.store(of_start + row * width + channels, flow, mask=inside)
