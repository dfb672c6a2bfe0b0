"""The generalised delta rule on an NVIDIA GPU: three Triton kernels, with the letters of `delta_chunk`.

Whatever a chunk gives alone is computed for all chunks at once; only the state S, and in the backward its gradient, is
carried from chunk to chunk, by one product a chunk in each block of value columns, whose rows of the state never meet:

    S' = exp(p_last) S + S E^T + D        E = -K^T diag(exp(p_last - p)) T diag(a exp(before)) K
    D = (T diag(b) V)^T diag(exp(p_last - p)) K                   before = p without the step's own decay

A cell is a chunk of a head of a row of the batch; what passes between kernels is dense, cells first, and of one kind:
bfloat16 where receptance, key and value are, else float32. Matrix operands are of that kind too, sums float32.
A transposed operand is a loaded tile, turned in bfloat16 and loaded transposed in float32: Triton 3.6 fails on Hopper
on the transpose of a product.
"""

from typing import no_type_check

from asnn_goose.errors import MachineError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise MachineError(
        f"the Triton delta rule needs triton, which cannot be imported ({error}): use a CUDA build of torch on Linux, "
        "or choose the torch backend"
    ) from error

VERSION: str = triton.__version__


@triton.jit
@no_type_check
def product(x, y, kind: tl.constexpr):
    """Their product in float32, from operands of the kind: bfloat16, or float32 as three tf32 products of 21 bits."""
    return tl.dot(x.to(kind), y.to(kind), input_precision="tf32x3")


@triton.jit
@no_type_check
def take(pointer, offsets, inside, width: tl.constexpr):
    """Rows of an input (rows width) at their offsets; zeros outside, which make neutral steps."""
    places = pointer + offsets[:, None] + tl.arange(0, width)[None, :]
    return tl.load(places, mask=inside[:, None], other=0.0)


@triton.jit
@no_type_check
def take_flipped(tile, pointer, offsets, inside, width: tl.constexpr, turned: tl.constexpr):
    """The transpose (width rows) of a tile that `take` gave."""
    if turned:
        tile = tl.trans(tile)
    else:
        places = pointer + offsets[None, :] + tl.arange(0, width)[:, None]
        tile = tl.load(places, mask=inside[None, :], other=0.0)
    return tile


@triton.jit
@no_type_check
def dense(pointer, rows, columns, width: tl.constexpr):
    """Addresses of a dense (rows width) array."""
    return pointer + rows[:, None] * width + columns[None, :]


@triton.jit
@no_type_check
def dense_flipped(pointer, rows, columns, width: tl.constexpr):
    """Addresses of the transpose (columns rows) of a dense (rows width) array."""
    return pointer + rows[None, :] * width + columns[:, None]


@triton.jit
@no_type_check
def load_flipped(tile, pointer, rows, columns, width: tl.constexpr, turned: tl.constexpr):
    """The transpose (columns rows) of a tile that was loaded from a dense (rows width) array."""
    return tl.trans(tile) if turned else tl.load(dense_flipped(pointer, rows, columns, width))


@triton.jit
@no_type_check
def rate(pointer, row, steps, time, heads):
    """One of the scalars (batch time heads) of a head for each step, 0 behind the end."""
    places = pointer + (row // heads) * time * heads + row % heads + steps * heads
    return tl.load(places, mask=steps < time, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def decay_between(later, earlier, when):
    """exp(later_i - earlier_j) where asked, else 0."""
    return tl.exp(tl.where(when, later[:, None] - earlier[None, :], float("-inf")))


@triton.jit
@no_type_check
def for_members(steps, members: tl.constexpr, chunk: tl.constexpr):
    """A number of each step, repeated for each member."""
    return tl.reshape(tl.broadcast_to(steps[None, :], (members, chunk)), (members * chunk,))


@triton.jit
@no_type_check
def solve_kernel(
    key, value, log_decay, erase, write, solved, erasing, added, kept,
    key_batch, key_time, key_head, value_batch, value_time, value_head, time, heads,
    width: tl.constexpr, value_width: tl.constexpr, chunk: tl.constexpr,
    turned: tl.constexpr, levels: tl.constexpr, inverse: tl.constexpr,
):  # fmt: skip
    """T, E, D and exp(p_last) of one chunk."""
    kind: tl.constexpr = solved.dtype.element_ty
    row = tl.program_id(1).to(tl.int64)
    cell = row * tl.num_programs(0) + tl.program_id(0)
    at, keys, values = tl.arange(0, chunk), tl.arange(0, width), tl.arange(0, value_width)
    steps = tl.program_id(0) * chunk + at
    inside = steps < time
    key += (row // heads) * key_batch + (row % heads) * key_head
    value += (row // heads) * value_batch + (row % heads) * value_head
    k = take(key, steps * key_time, inside, width)
    k_flipped = take_flipped(k, key, steps * key_time, inside, width, turned)
    v = take(value, steps * value_time, inside, value_width)
    log_w = rate(log_decay, row, steps, time, heads)
    a, b = rate(erase, row, steps, time, heads), rate(write, row, steps, time, heads)
    passed, total = tl.cumsum(log_w, 0), tl.sum(log_w, 0)
    before = passed - log_w
    t, s = at[:, None], at[None, :]
    mixing = a[:, None] * decay_between(before, passed, s < t) * product(k, k_flipped, kind)
    # The inverse of diagonal blocks twice as large from those before: stable, unlike a product of powers.
    solution = tl.where(t == s, 1.0, 0.0) - tl.where(t >> 1 == s >> 1, mixing, 0.0)
    for level in tl.static_range(1, levels):
        corner = tl.where((t >> (level + 1) == s >> (level + 1)) & (t >> level != s >> level), mixing, 0.0)
        half = tl.dot(solution, corner, input_precision=inverse)
        solution -= tl.dot(half, solution, input_precision=inverse)
    tl.store(dense(solved + cell * chunk * chunk, at, at, chunk), solution)
    tl.store(kept + cell, tl.exp(total))
    to_end = tl.exp(total - passed)[:, None]
    by_state = product(solution, (a * tl.exp(before))[:, None] * k, kind)
    found = -product(k_flipped, to_end * by_state, kind)
    tl.store(dense(erasing + cell * width * width, keys, keys, width), found)
    found = product(k_flipped, to_end * product(solution, b[:, None] * v, kind), kind)  # key value
    tl.store(dense_flipped(added + cell * value_width * width, values, keys, width), found)


@triton.jit
@no_type_check
def carry_kernel(
    initial, erasing, added, kept, states, final, chunks,
    width: tl.constexpr, value_width: tl.constexpr, block: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """The state before each chunk, and behind the last."""
    kind: tl.constexpr = states.dtype.element_ty
    row = tl.program_id(1).to(tl.int64)
    keys, values = tl.arange(0, width), tl.program_id(0) * block + tl.arange(0, block)
    state = tl.load(dense(initial + row * value_width * width, values, keys, width))
    share = tl.load(kept + row * chunks)
    for place in tl.range(0, chunks, num_stages=stages):
        cell = row * chunks + place
        bound = tl.load(dense_flipped(erasing + cell * width * width, keys, keys, width))
        fresh = tl.load(dense(added + cell * value_width * width, values, keys, width))
        tl.store(dense(states + cell * value_width * width, values, keys, width), state)
        left = share * state + fresh
        share = tl.load(kept + cell + 1, mask=place + 1 < chunks, other=0.0)
        state = left + product(state, bound, kind)
    tl.store(dense(final + row * value_width * width, values, keys, width), state)


@triton.jit
@no_type_check
def read_kernel(
    receptance, key, value, log_decay, erase, write, solved, states, new, read,
    r_batch, r_time, r_head, r_group, key_batch, key_time, key_head, value_batch, value_time, value_head,
    time, heads, group: tl.constexpr, members: tl.constexpr,
    width: tl.constexpr, value_width: tl.constexpr, chunk: tl.constexpr, turned: tl.constexpr,
):  # fmt: skip
    """U of one chunk, and what every member of the group reads, several members stacked in one tile."""
    kind: tl.constexpr = states.dtype.element_ty
    row = tl.program_id(1).to(tl.int64)
    cell = row * tl.num_programs(0) + tl.program_id(0)
    at, keys, values = tl.arange(0, chunk), tl.arange(0, width), tl.arange(0, value_width)
    steps = tl.program_id(0) * chunk + at
    inside = steps < time
    key += (row // heads) * key_batch + (row % heads) * key_head
    value += (row // heads) * value_batch + (row % heads) * value_head
    receptance += (row // heads) * r_batch + (row % heads) * r_head
    read += ((row // heads) * time * heads + row % heads) * group * value_width
    log_w = rate(log_decay, row, steps, time, heads)
    a, b = rate(erase, row, steps, time, heads), rate(write, row, steps, time, heads)
    passed = tl.cumsum(log_w, 0)
    state = tl.load(dense(states + cell * value_width * width, values, keys, width))
    state = load_flipped(state, states + cell * value_width * width, values, keys, width, turned)
    k = take(key, steps * key_time, inside, width)
    found = product(k, state, kind)
    v = take(value, steps * value_time, inside, value_width)
    solution = tl.load(dense(solved + cell * chunk * chunk, at, at, chunk))
    u = product(solution, b[:, None] * v - (a * tl.exp(passed - log_w))[:, None] * found, kind).to(kind)
    tl.store(dense(new + cell * chunk * value_width, at, values, value_width), u)
    k_flipped = take_flipped(k, key, steps * key_time, inside, width, turned)
    rows = tl.arange(0, members * chunk)
    t, member = rows % chunk, rows // chunk
    lines, passed_there = tl.program_id(0) * chunk + t, for_members(passed, members, chunk)
    between = decay_between(passed_there, passed, t[:, None] >= at[None, :])
    for first in range(0, group, members):
        there = (lines < time) & (first + member < group)
        r = take(receptance, (first + member) * r_group + lines * r_time, there, width)
        mixed = between * product(r, k_flipped, kind)
        y = tl.exp(passed_there)[:, None] * product(r, state, kind) + product(mixed, u, kind)
        places = dense(read, lines * heads * group + first + member, values, value_width)
        tl.store(places, y, mask=there[:, None])
