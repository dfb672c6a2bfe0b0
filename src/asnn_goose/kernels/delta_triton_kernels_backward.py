"""The backward of the generalised delta rule on an NVIDIA GPU: three Triton kernels, with the letters of `delta_chunk`.

As in the forward, whose remarks hold here too, only the carried gradient of the state is not done for all chunks at
once; reading has a kernel of its own, which needs nothing that is carried.
"""

from typing import no_type_check

import triton
import triton.language as tl

from asnn_goose.kernels.delta_triton_kernels import (
    decay_between,
    dense,
    dense_flipped,
    for_members,
    load_flipped,
    product,
    rate,
    take,
    take_flipped,
)


@triton.jit
@no_type_check
def read_backward_kernel(
    receptance, key, log_decay, erase, read_gradient, solved, states, new,
    r_gradient, source, reached, written_by_reads, decayed_by_reads,
    r_batch, r_time, r_head, r_group, key_batch, key_time, key_head, time, heads,
    group: tl.constexpr, members: tl.constexpr,
    width: tl.constexpr, value_width: tl.constexpr, chunk: tl.constexpr, turned: tl.constexpr,
):  # fmt: skip
    """What reading one chunk gives: the gradient of r, and shares of those of U, the state before, k and the decay."""
    kind: tl.constexpr = states.dtype.element_ty
    row = tl.program_id(1).to(tl.int64)
    cell = row * tl.num_programs(0) + tl.program_id(0)
    at, keys, values = tl.arange(0, chunk), tl.arange(0, width), tl.arange(0, value_width)
    steps = tl.program_id(0) * chunk + at
    inside = steps < time
    key += (row // heads) * key_batch + (row % heads) * key_head
    receptance += (row // heads) * r_batch + (row % heads) * r_head
    read_gradient += ((row // heads) * time * heads + row % heads) * group * value_width
    r_gradient += ((row // heads) * time * heads + row % heads) * group * width
    log_w, a = rate(log_decay, row, steps, time, heads), rate(erase, row, steps, time, heads)
    passed = tl.cumsum(log_w, 0)
    k = take(key, steps * key_time, inside, width)
    k_flipped = take_flipped(k, key, steps * key_time, inside, width, turned)
    u = tl.load(dense(new + cell * chunk * value_width, at, values, value_width))
    u_flipped = load_flipped(u, new + cell * chunk * value_width, at, values, value_width, turned)
    state = tl.load(dense(states + cell * value_width * width, values, keys, width))
    from_reads = tl.zeros((value_width, chunk), tl.float32)
    to_state = tl.zeros((value_width, width), tl.float32)
    written = tl.zeros((chunk, width), tl.float32)
    decayed = tl.zeros((chunk,), tl.float32)
    rows = tl.arange(0, members * chunk)
    t, member = rows % chunk, rows // chunk
    lines, passed_there = tl.program_id(0) * chunk + t, for_members(passed, members, chunk)
    for other in range(0, group, members):
        there = (lines < time) & (other + member < group)
        places = lines * heads * group + other + member
        y_gradient = take(read_gradient, places * value_width, there, value_width)
        y_gradient_flipped = take_flipped(y_gradient, read_gradient, places * value_width, there, value_width, turned)
        r = take(receptance, (other + member) * r_group + lines * r_time, there, width)
        between = decay_between(passed_there, passed, t[:, None] >= at[None, :])
        from_reads += product(y_gradient_flipped, between * product(r, k_flipped, kind), kind)
        found = product(between * product(y_gradient, u_flipped, kind), k, kind)
        found += tl.exp(passed_there)[:, None] * product(y_gradient, state, kind)
        tl.store(dense(r_gradient, places, keys, width), found, mask=there[:, None])
        decayed += tl.sum(tl.reshape(tl.sum(r * found, 1), (members, chunk)), 0)
        # Rows are the steps that write, columns those that read.
        later = t[None, :] >= at[:, None]
        between = tl.exp(tl.where(later, passed_there[None, :] - passed[:, None], float("-inf")))
        written += product(between * product(u, y_gradient_flipped, kind), r, kind)
        to_state += product(y_gradient_flipped, tl.exp(passed_there)[:, None] * r, kind)
    tl.store(decayed_by_reads + cell * chunk + at, decayed - tl.sum(k * written, 1))
    tl.store(dense(written_by_reads + cell * chunk * width, at, keys, width), written)
    tl.store(dense(source + cell * chunk * value_width, values, at, chunk), from_reads)
    solution = tl.load(dense(solved + cell * chunk * chunk, at, at, chunk))
    by_state = product(solution, (a * tl.exp(passed - log_w))[:, None] * k, kind)
    to_state -= product(from_reads, by_state, kind)
    tl.store(dense(reached + cell * value_width * width, values, keys, width), to_state)


@triton.jit
@no_type_check
def carry_backward_kernel(
    final_gradient, erasing, reached, kept, after, initial_gradient, chunks,
    width: tl.constexpr, value_width: tl.constexpr, block: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """The gradient of the state after each chunk, and of the initial one."""
    kind: tl.constexpr = after.dtype.element_ty
    row = tl.program_id(1).to(tl.int64)
    keys, values = tl.arange(0, width), tl.program_id(0) * block + tl.arange(0, block)
    flow = tl.load(dense(final_gradient + row * value_width * width, values, keys, width))
    share = tl.load(kept + row * chunks + chunks - 1)
    for turn in tl.range(0, chunks, num_stages=stages):
        place = chunks - 1 - turn
        cell = row * chunks + place
        bound = tl.load(dense(erasing + cell * width * width, keys, keys, width))
        straight = tl.load(dense(reached + cell * value_width * width, values, keys, width))
        tl.store(dense(after + cell * value_width * width, values, keys, width), flow)
        left = share * flow + straight
        share = tl.load(kept + cell - 1, mask=place > 0, other=0.0)
        flow = left + product(flow, bound, kind)
    tl.store(dense(initial_gradient + row * value_width * width, values, keys, width), flow)


@triton.jit
@no_type_check
def gradients_kernel(
    key, value, log_decay, erase, write, solved, states, new, source, after, written_by_reads, decayed_by_reads,
    key_gradient, value_gradient, log_gradient, erase_gradient, write_gradient,
    key_batch, key_time, key_head, value_batch, value_time, value_head, time, heads,
    width: tl.constexpr, value_width: tl.constexpr, chunk: tl.constexpr, turned: tl.constexpr,
):  # fmt: skip
    """Every gradient of one chunk that waits for the state's, as the end of the backward in `delta_chunk`."""
    kind: tl.constexpr = states.dtype.element_ty
    row = tl.program_id(1).to(tl.int64)
    cell = row * tl.num_programs(0) + tl.program_id(0)
    at, keys, values = tl.arange(0, chunk), tl.arange(0, width), tl.arange(0, value_width)
    steps = tl.program_id(0) * chunk + at
    there, inside = (row // heads) * time * heads + row % heads + steps * heads, steps < time
    key += (row // heads) * key_batch + (row % heads) * key_head
    value += (row // heads) * value_batch + (row % heads) * value_head
    log_w = rate(log_decay, row, steps, time, heads)
    a, b = rate(erase, row, steps, time, heads), rate(write, row, steps, time, heads)
    passed, total = tl.cumsum(log_w, 0), tl.sum(log_w, 0)
    before, to_end = passed - log_w, tl.exp(total - passed)
    t, s = at[:, None], at[None, :]
    k = take(key, steps * key_time, inside, width)
    k_flipped = take_flipped(k, key, steps * key_time, inside, width, turned)
    flow = tl.load(dense(after + cell * value_width * width, values, keys, width))
    flow_flipped = load_flipped(flow, after + cell * value_width * width, values, keys, width, turned)
    # The gradient of what is written, and that through the inverse.
    arriving = tl.load(dense_flipped(source + cell * chunk * value_width, values, at, chunk))
    arriving += to_end[:, None] * product(k, flow_flipped, kind)
    arriving_flipped = tl.load(dense(source + cell * chunk * value_width, values, at, chunk))
    arriving_flipped += to_end[None, :] * product(flow, k_flipped, kind)
    solution = tl.load(dense(solved + cell * chunk * chunk, at, at, chunk))
    solution_flipped = load_flipped(solution, solved + cell * chunk * chunk, at, at, chunk, turned)
    put = product(solution_flipped, arriving, kind)
    put_flipped = product(arriving_flipped, solution, kind).to(kind)
    # What reaches k when it is written: by the state, by the reads (already in `decayed`) and by the writes after it.
    u = tl.load(dense(new + cell * chunk * value_width, at, values, value_width))
    u_flipped = load_flipped(u, new + cell * chunk * value_width, at, values, value_width, turned)
    written = to_end[:, None] * product(u, flow, kind)
    end = tl.sum(tl.sum(k * written, 1), 0)
    between = tl.exp(tl.where(s > t, before[None, :] - passed[:, None], float("-inf")))
    written -= product(between * product(u, put_flipped, kind), a[:, None] * k, kind)
    # And when it erases, divided by a.
    state = tl.load(dense(states + cell * value_width * width, values, keys, width))
    end += tl.exp(total) * tl.sum(tl.sum(state.to(tl.float32) * flow.to(tl.float32), 1), 0)
    pairs = decay_between(before, passed, t > s) * product(put, u_flipped, kind)
    erased = -product(pairs, k, kind) - tl.exp(before)[:, None] * product(put, state, kind)
    by_erasing = tl.sum(k * erased, 1)
    decayed = tl.load(decayed_by_reads + cell * chunk + at) + a * by_erasing - tl.sum(k * written, 1)
    later = tl.sum(tl.where(s >= t, decayed[None, :], 0.0), 1)
    tl.store(log_gradient + there, later + end - a * by_erasing, mask=inside)
    tl.store(erase_gradient + there, by_erasing, mask=inside)
    v = take(value, steps * value_time, inside, value_width)
    tl.store(write_gradient + there, tl.sum(put * v, 1), mask=inside)
    written += tl.load(dense(written_by_reads + cell * chunk * width, at, keys, width))
    places = key_gradient + there[:, None] * width + keys[None, :]
    tl.store(places, written + a[:, None] * erased, mask=inside[:, None])
    tl.store(value_gradient + there[:, None] * value_width + values[None, :], b[:, None] * put, mask=inside[:, None])
