"""The six Triton kernels of the generalised delta rule on an NVIDIA GPU, with the letters of `delta_chunk`.

Whatever a chunk gives alone is computed for all chunks at once; only the state, and in the backward its gradient, is
carried from chunk to chunk, by one program for each block of value columns, whose rows of the state never meet.
A cell is a chunk of a head of a row of the batch; what passes between kernels is dense and float32, cells first.
Transposed operands are loaded transposed: Triton 3.6 fails on the transpose of a product on Hopper.
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


@triton.jit
@no_type_check
def _take(pointer, steps, stride, width: tl.constexpr, time):
    """Rows of time (time width); zeros behind the end, which make neutral steps."""
    places = pointer + steps[:, None] * stride + tl.arange(0, width)[None, :]
    return tl.load(places, mask=(steps < time)[:, None], other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _take_flipped(pointer, steps, stride, width: tl.constexpr, time):
    """The transpose of `_take` (width time)."""
    places = pointer + steps[None, :] * stride + tl.arange(0, width)[:, None]
    return tl.load(places, mask=(steps < time)[None, :], other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _places(pointer, rows, columns, width: tl.constexpr):
    """Addresses of a dense (rows width) array."""
    return pointer + rows[:, None] * width + columns[None, :]


@triton.jit
@no_type_check
def _flipped(pointer, rows, columns, width: tl.constexpr):
    """Addresses of the transpose (columns rows) of a dense (rows width) array."""
    return pointer + rows[None, :] * width + columns[:, None]


@triton.jit
@no_type_check
def _rate(pointer, row, steps, time, heads):
    """One of the scalars (batch time heads) of a head for each step, 0 behind the end."""
    places = pointer + (row // heads) * time * heads + row % heads + steps * heads
    return tl.load(places, mask=steps < time, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def solve_kernel(
    key, value, log_decay, erase, write, solved, by_state, new,
    key_batch, key_time, key_head, value_batch, value_time, value_head, time, heads,
    width: tl.constexpr, value_width: tl.constexpr, chunk: tl.constexpr,
    levels: tl.constexpr, inverse: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """T, T diag(b) V and T diag(a exp(before)) K of one chunk."""
    row = tl.program_id(1).to(tl.int64)
    cell = row * tl.num_programs(0) + tl.program_id(0)
    at = tl.arange(0, chunk)
    steps = tl.program_id(0) * chunk + at
    key += (row // heads) * key_batch + (row % heads) * key_head
    value += (row // heads) * value_batch + (row % heads) * value_head
    k = _take(key, steps, key_time, width, time)
    v = _take(value, steps, value_time, value_width, time)
    log_w = _rate(log_decay, row, steps, time, heads)
    a, b = _rate(erase, row, steps, time, heads), _rate(write, row, steps, time, heads)
    passed = tl.cumsum(log_w, 0)
    before = passed - log_w
    t, s = at[:, None], at[None, :]
    between = tl.exp(tl.where(s < t, before[:, None] - passed[None, :], float("-inf")))
    pairs = tl.dot(k, _take_flipped(key, steps, key_time, width, time), input_precision=inverse)
    mixing = a[:, None] * between * pairs
    # The inverse of diagonal blocks twice as large from those before: stable, unlike a product of powers.
    solution = tl.where(t == s, 1.0, 0.0) - tl.where(t >> 1 == s >> 1, mixing, 0.0)
    for level in tl.static_range(1, levels):
        corner = tl.where((t >> (level + 1) == s >> (level + 1)) & (t >> level != s >> level), mixing, 0.0)
        half = tl.dot(solution, corner, input_precision=inverse)
        solution -= tl.dot(half, solution, input_precision=inverse)
    tl.store(_places(solved + cell * chunk * chunk, at, at, chunk), solution)
    found = tl.dot(solution, (a * tl.exp(before))[:, None] * k, input_precision=precision)
    tl.store(_places(by_state + cell * chunk * width, at, tl.arange(0, width), width), found)
    found = tl.dot(solution, b[:, None] * v, input_precision=precision)
    tl.store(_places(new + cell * chunk * value_width, at, tl.arange(0, value_width), value_width), found)


@triton.jit
@no_type_check
def carry_kernel(
    key, log_decay, initial, by_state, new, states, final, key_batch, key_time, key_head, time, heads, chunks,
    width: tl.constexpr, value_width: tl.constexpr, block: tl.constexpr, chunk: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """The state before each chunk, and `new` from what a chunk writes alone to what it writes."""
    row = tl.program_id(1).to(tl.int64)
    at, keys = tl.arange(0, chunk), tl.arange(0, width)
    values = tl.program_id(0) * block + tl.arange(0, block)
    key += (row // heads) * key_batch + (row % heads) * key_head
    state = tl.load(_flipped(initial + row * value_width * width, values, keys, width))  # key block
    for place in range(chunks):
        cell, steps = row * chunks + place, place * chunk + at
        tl.store(_flipped(states + cell * value_width * width, values, keys, width), state)
        bound = tl.load(_places(by_state + cell * chunk * width, at, keys, width))
        fresh = _places(new + cell * chunk * value_width, at, values, value_width)
        k_flipped = _take_flipped(key, steps, key_time, width, time)
        log_w = _rate(log_decay, row, steps, time, heads)
        passed, total = tl.cumsum(log_w, 0), tl.sum(log_w, 0)
        u = tl.load(fresh) - tl.dot(bound, state, input_precision=precision)
        tl.store(fresh, u)
        kept = tl.exp(total - passed)[:, None] * u
        state = tl.exp(total) * state + tl.dot(k_flipped, kept, input_precision=precision)
    tl.store(_flipped(final + row * value_width * width, values, keys, width), state)


@triton.jit
@no_type_check
def read_kernel(
    receptance, key, log_decay, new, states, read,
    r_batch, r_time, r_head, r_group, key_batch, key_time, key_head, time, heads, group,
    width: tl.constexpr, value_width: tl.constexpr, chunk: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """What every member of the group reads in one chunk."""
    row = tl.program_id(1).to(tl.int64)
    cell = row * tl.num_programs(0) + tl.program_id(0)
    at, keys, values = tl.arange(0, chunk), tl.arange(0, width), tl.arange(0, value_width)
    steps = tl.program_id(0) * chunk + at
    key += (row // heads) * key_batch + (row % heads) * key_head
    receptance += (row // heads) * r_batch + (row % heads) * r_head
    read += ((row // heads) * time * heads + row % heads) * group * value_width
    passed = tl.cumsum(_rate(log_decay, row, steps, time, heads), 0)
    between = tl.exp(tl.where(at[:, None] >= at[None, :], passed[:, None] - passed[None, :], float("-inf")))
    k_flipped = _take_flipped(key, steps, key_time, width, time)
    state = tl.load(_flipped(states + cell * value_width * width, values, keys, width))  # key value
    u = tl.load(_places(new + cell * chunk * value_width, at, values, value_width))
    for member in range(group):
        r = _take(receptance + member * r_group, steps, r_time, width, time)
        mixed = between * tl.dot(r, k_flipped, input_precision=precision)
        y = tl.exp(passed)[:, None] * tl.dot(r, state, input_precision=precision)
        y += tl.dot(mixed, u, input_precision=precision)
        places = read + steps[:, None] * heads * group * value_width + member * value_width + values[None, :]
        tl.store(places, y, mask=(steps < time)[:, None])


@triton.jit
@no_type_check
def read_backward_kernel(
    receptance, key, log_decay, read_gradient, source, direct,
    r_batch, r_time, r_head, r_group, key_batch, key_time, key_head, time, heads, group,
    width: tl.constexpr, value_width: tl.constexpr, chunk: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """What reading alone gives the gradients of the writes and of the state before one chunk (key value)."""
    row = tl.program_id(1).to(tl.int64)
    cell = row * tl.num_programs(0) + tl.program_id(0)
    at, keys, values = tl.arange(0, chunk), tl.arange(0, width), tl.arange(0, value_width)
    steps = tl.program_id(0) * chunk + at
    key += (row // heads) * key_batch + (row % heads) * key_head
    receptance += (row // heads) * r_batch + (row % heads) * r_head
    read_gradient += ((row // heads) * time * heads + row % heads) * group * value_width
    passed = tl.cumsum(_rate(log_decay, row, steps, time, heads), 0)
    # Rows are the steps s that write, columns the steps t that read.
    flipped = tl.exp(tl.where(at[None, :] >= at[:, None], passed[None, :] - passed[:, None], float("-inf")))
    k = _take(key, steps, key_time, width, time)
    from_reads = tl.zeros((chunk, value_width), tl.float32)
    from_state = tl.zeros((width, value_width), tl.float32)
    for member in range(group):
        y_gradient = _take(read_gradient + member * value_width, steps, heads * group * value_width, value_width, time)
        r_flipped = _take_flipped(receptance + member * r_group, steps, r_time, width, time)
        mixed = flipped * tl.dot(k, r_flipped, input_precision=precision)
        from_reads += tl.dot(mixed, y_gradient, input_precision=precision)
        from_state += tl.dot(r_flipped, tl.exp(passed)[:, None] * y_gradient, input_precision=precision)
    tl.store(_places(source + cell * chunk * value_width, at, values, value_width), from_reads)
    tl.store(_places(direct + cell * value_width * width, keys, values, value_width), from_state)


@triton.jit
@no_type_check
def carry_backward_kernel(
    key, log_decay, final_gradient, by_state, direct, source, after, initial_gradient,
    key_batch, key_time, key_head, time, heads, chunks,
    width: tl.constexpr, value_width: tl.constexpr, block: tl.constexpr, chunk: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """The gradient of the state after each chunk, and `source` from the reads' share to the gradient of the writes."""
    row = tl.program_id(1).to(tl.int64)
    at, keys = tl.arange(0, chunk), tl.arange(0, width)
    values = tl.program_id(0) * block + tl.arange(0, block)
    key += (row // heads) * key_batch + (row % heads) * key_head
    flow = tl.load(_flipped(final_gradient + row * value_width * width, values, keys, width))  # key block
    for turn in range(chunks):
        place = chunks - 1 - turn
        cell, steps = row * chunks + place, place * chunk + at
        tl.store(_flipped(after + cell * value_width * width, values, keys, width), flow)
        bound_flipped = tl.load(_flipped(by_state + cell * chunk * width, at, keys, width))
        straight = tl.load(_places(direct + cell * value_width * width, keys, values, value_width))
        fresh = _places(source + cell * chunk * value_width, at, values, value_width)
        k = _take(key, steps, key_time, width, time)
        log_w = _rate(log_decay, row, steps, time, heads)
        passed, total = tl.cumsum(log_w, 0), tl.sum(log_w, 0)
        u_gradient = tl.load(fresh) + tl.exp(total - passed)[:, None] * tl.dot(k, flow, input_precision=precision)
        tl.store(fresh, u_gradient)
        flow = tl.exp(total) * flow + straight - tl.dot(bound_flipped, u_gradient, input_precision=precision)
    tl.store(_flipped(initial_gradient + row * value_width * width, values, keys, width), flow)


@triton.jit
@no_type_check
def gradients_kernel(
    receptance, key, value, log_decay, erase, write, read_gradient, solved, new, states, source, after,
    r_gradient, key_gradient, value_gradient, log_gradient, erase_gradient, write_gradient,
    r_batch, r_time, r_head, r_group, key_batch, key_time, key_head, value_batch, value_time, value_head,
    time, heads, group,
    width: tl.constexpr, value_width: tl.constexpr, chunk: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Every gradient of one chunk but the initial state's, as the end of the backward in `delta_chunk`."""
    row = tl.program_id(1).to(tl.int64)
    cell = row * tl.num_programs(0) + tl.program_id(0)
    at, keys, values = tl.arange(0, chunk), tl.arange(0, width), tl.arange(0, value_width)
    steps = tl.program_id(0) * chunk + at
    first = (row // heads) * time * heads + row % heads
    there, inside = first + steps * heads, steps < time
    key += (row // heads) * key_batch + (row % heads) * key_head
    value += (row // heads) * value_batch + (row % heads) * value_head
    receptance += (row // heads) * r_batch + (row % heads) * r_head
    log_w = _rate(log_decay, row, steps, time, heads)
    a, b = _rate(erase, row, steps, time, heads), _rate(write, row, steps, time, heads)
    passed, total = tl.cumsum(log_w, 0), tl.sum(log_w, 0)
    before = passed - log_w
    t, s = at[:, None], at[None, :]
    k = _take(key, steps, key_time, width, time)
    u = tl.load(_places(new + cell * chunk * value_width, at, values, value_width))
    u_flipped = tl.load(_flipped(new + cell * chunk * value_width, at, values, value_width))
    state = tl.load(_places(states + cell * value_width * width, values, keys, width))
    flow = tl.load(_places(after + cell * value_width * width, values, keys, width))
    # What reaches k when it is written: by the state, by the reads and by the writes after it.
    written = tl.exp(total - passed)[:, None] * tl.dot(u, flow, input_precision=precision)
    end = tl.sum(tl.sum(k * written, 1), 0) + tl.exp(total) * tl.sum(tl.sum(state * flow, 1), 0)
    decayed = tl.zeros((chunk,), tl.float32)
    for member in range(group):
        lines = read_gradient + (first * group + member) * value_width
        stride = heads * group * value_width
        y_gradient = _take(lines, steps, stride, value_width, time)
        r = _take(receptance + member * r_group, steps, r_time, width, time)
        between = tl.exp(tl.where(t >= s, passed[:, None] - passed[None, :], float("-inf")))
        pairs = between * tl.dot(y_gradient, u_flipped, input_precision=precision)
        found = tl.exp(passed)[:, None] * tl.dot(y_gradient, state, input_precision=precision)
        found += tl.dot(pairs, k, input_precision=precision)
        places = r_gradient + (there[:, None] * group + member) * width + keys[None, :]
        tl.store(places, found, mask=inside[:, None])
        decayed += tl.sum(r * found, 1)
        y_gradient_flipped = _take_flipped(lines, steps, stride, value_width, time)
        between = tl.exp(tl.where(s >= t, passed[None, :] - passed[:, None], float("-inf")))
        pairs = between * tl.dot(u, y_gradient_flipped, input_precision=precision)
        written += tl.dot(pairs, r, input_precision=precision)
    solution = tl.load(_places(solved + cell * chunk * chunk, at, at, chunk))
    solution_flipped = tl.load(_flipped(solved + cell * chunk * chunk, at, at, chunk))
    arriving = tl.load(_places(source + cell * chunk * value_width, at, values, value_width))
    arriving_flipped = tl.load(_flipped(source + cell * chunk * value_width, at, values, value_width))
    put = tl.dot(solution_flipped, arriving, input_precision=precision)
    put_flipped = tl.dot(arriving_flipped, solution, input_precision=precision)
    between = tl.exp(tl.where(t > s, before[:, None] - passed[None, :], float("-inf")))
    pairs = between * tl.dot(put, u_flipped, input_precision=precision)
    # And when it erases, divided by a.
    erased = -tl.dot(pairs, k, input_precision=precision)
    erased -= tl.exp(before)[:, None] * tl.dot(put, state, input_precision=precision)
    between = tl.exp(tl.where(s > t, before[None, :] - passed[:, None], float("-inf")))
    pairs = between * tl.dot(u, put_flipped, input_precision=precision)
    written -= tl.dot(pairs, a[:, None] * k, input_precision=precision)
    by_erasing = tl.sum(k * erased, 1)
    decayed += a * by_erasing - tl.sum(k * written, 1)
    later = tl.sum(tl.where(s >= t, decayed[None, :], 0.0), 1)
    v = _take(value, steps, value_time, value_width, time)
    tl.store(log_gradient + there, later + end - a * by_erasing, mask=inside)
    tl.store(erase_gradient + there, by_erasing, mask=inside)
    tl.store(write_gradient + there, tl.sum(put * v, 1), mask=inside)
    places = key_gradient + there[:, None] * width + keys[None, :]
    tl.store(places, written + a[:, None] * erased, mask=inside[:, None])
    tl.store(value_gradient + there[:, None] * value_width + values[None, :], b[:, None] * put, mask=inside[:, None])
