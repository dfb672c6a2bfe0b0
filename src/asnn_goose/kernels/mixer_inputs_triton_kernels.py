"""The Triton kernels between a mixer's projections and its recurrence: forward of a site, and the two of its gradient.

A site is r, k or v: a run of heads among the projected columns. A program holds a tile of tokens by heads by half a
head, once for each half, since rotary positions turn the two halves of a head against each other. With c the sum of a
channel's last projections times its taps, y is c turned; k and v become spikes h of y (see `encoder_triton_kernels`),
times the token's step where it is wanted; k is divided by its length where that exceeds 1. The first kernel does all
this. Backward, the second makes the first's values anew and takes the gradients of k and v back to c, and the third
takes those of all c through the taps.
"""

from typing import no_type_check

from asnn_goose.errors import MachineError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise MachineError(
        f"the fused inputs of a mixer need triton, which cannot be imported ({error}): use a CUDA build of torch on "
        "Linux, or let the mixer take its torch form"
    ) from error


@triton.jit
@no_type_check
def _convolved(x, taps, tail, first, time, at, channel, inside, stride, channels, count: tl.constexpr):
    """The convolution of tokens `first + at` of one row, where `x` points at token `first`; zero outside."""
    present = inside & (first + at < time)
    mixed = tl.load(taps + channel, mask=inside, other=0.0) * tl.load(
        x + at * stride + channel, mask=present, other=0.0
    ).to(tl.float32)
    for place in tl.static_range(1, count):
        factor = tl.load(taps + place * channels + channel, mask=inside, other=0.0)
        there = present & (first + at >= place)
        mixed += factor * tl.load(x + (at - place) * stride + channel, mask=there, other=0.0).to(tl.float32)
    if count > 1:
        if first < count - 1:
            for place in tl.static_range(1, count):
                factor = tl.load(taps + place * channels + channel, mask=inside, other=0.0)
                behind = place - 1 - first - at
                places = tail + behind * channels + channel
                mixed += factor * tl.load(places, mask=present & (behind >= 0), other=0.0).to(tl.float32)
    return mixed


@triton.jit
@no_type_check
def _threshold(y, z, share, alpha, least, most):
    """Each token's threshold from both halves of all its heads; none where a number is none, for guards to see."""
    mean = tl.sum(tl.sum(tl.abs(y) + tl.abs(z), 2), 1) * share
    theta = alpha * mean
    theta = tl.where(theta < least, least, theta)
    theta = tl.where(theta > most, most, theta)
    return tl.where(mean < float("inf"), theta, float("nan"))[:, None, None]


@triton.jit
@no_type_check
def _spikes(y, theta, levels: tl.constexpr, compared: tl.constexpr):
    """The staircase of y: the edges theta, 3 theta, ... that |y| reaches, or with many levels one division."""
    size = tl.abs(y)
    if levels <= compared:
        height = tl.where(size >= theta, 1.0, 0.0)
        for level in tl.static_range(1, levels):
            height += tl.where(size >= (2 * level + 1) * theta, 1.0, 0.0)
    else:
        height = tl.floor(tl.div_rn(size, 2.0 * theta + tl.zeros_like(size)) + 0.5)
        height = tl.where(height > levels, levels, height)
        height = tl.where(theta > 0, height, 0.0)
    return tl.where(y < 0, -height, height)


@triton.jit
@no_type_check
def site_kernel(
    x, taps, tail, cosine, sine, made, spikes, rest,
    time, stride, table_stride, channels, alpha, least, most,
    start: tl.constexpr, heads: tl.constexpr, half: tl.constexpr, span: tl.constexpr, turns: tl.constexpr,
    tokens: tl.constexpr, count: tl.constexpr, turned: tl.constexpr, bounded: tl.constexpr,
    levels: tl.constexpr, compared: tl.constexpr, scaled: tl.constexpr,
    rest_width: tl.constexpr, rest_block: tl.constexpr,
):  # fmt: skip
    """What the recurrence takes of one site, its spikes if it has any, and if asked a copy of the remaining columns."""
    first, row = tl.program_id(0) * tokens, tl.program_id(1).to(tl.int64)
    at, part = tl.arange(0, tokens)[:, None, None], tl.arange(0, half)[None, None, :]
    x += (row * time + first) * stride
    tail += row * (count - 1) * channels
    width: tl.constexpr = heads * 2 * half
    out = (row * time + first) * width
    if turned:
        places = row * table_stride + (first + at) * half + part
        cos = tl.load(cosine + places, mask=first + at < time, other=0.0)
        sin = tl.load(sine + places, mask=first + at < time, other=0.0)
    for turn in range(turns):
        head = (tl.program_id(2) * turns + turn) * span + tl.arange(0, span)[None, :, None]
        inside = head < heads
        channel = start + head * 2 * half + part
        y = _convolved(x, taps, tail, first, time, at, channel, inside, stride, channels, count)
        z = _convolved(x, taps, tail, first, time, at, channel + half, inside, stride, channels, count)
        if turned:
            y, z = y * cos - z * sin, z * cos + y * sin
        there = inside & (first + at < time)
        places = out + at * width + head * 2 * half + part
        if levels > 0:
            theta = _threshold(y, z, 1.0 / width, alpha, least, most)
            y, z = _spikes(y, theta, levels, compared), _spikes(z, theta, levels, compared)
            tl.store(spikes + places, y.to(tl.int8), mask=there)
            tl.store(spikes + places + half, z.to(tl.int8), mask=there)
            factor = 2.0 * theta if scaled else tl.where(theta > 0, 1.0, float("nan"))
            y, z = y * factor, z * factor
        if bounded:
            inverse = tl.rsqrt(tl.maximum(tl.sum(y * y + z * z, 2), 1.0))[:, :, None]
            y, z = y * inverse, z * inverse
        tl.store(made + places, y.to(made.dtype.element_ty), mask=there)
        tl.store(made + places + half, z.to(made.dtype.element_ty), mask=there)
    if rest_width > 0:
        token, column = tl.arange(0, tokens)[:, None], tl.arange(0, rest_block)[None, :]
        there = (first + token < time) & (column < rest_width)
        found = tl.load(x + token * stride + channels + column, mask=there)
        tl.store(rest + (row * time + first) * rest_width + token * rest_width + column, found, mask=there)


@triton.jit
@no_type_check
def site_backward_kernel(
    x, taps, tail, cosine, sine, arriving, gradient, rest_arriving, rest_gradient,
    time, stride, table_stride, channels, alpha, least, most, limit, gradient_scale,
    start: tl.constexpr, heads: tl.constexpr, half: tl.constexpr, span: tl.constexpr, place: tl.constexpr,
    tokens: tl.constexpr, count: tl.constexpr, turned: tl.constexpr, bounded: tl.constexpr,
    levels: tl.constexpr, compared: tl.constexpr, scaled: tl.constexpr,
    rest_width: tl.constexpr, rest_block: tl.constexpr,
):  # fmt: skip
    """The gradient at the convolution's output of k (place 0) or v (place 1), and of the remaining columns a copy."""
    first, row = tl.program_id(0) * tokens, tl.program_id(1).to(tl.int64)
    at, part = tl.arange(0, tokens)[:, None, None], tl.arange(0, half)[None, None, :]
    head = tl.arange(0, span)[None, :, None]
    inside = head < heads
    there = inside & (first + at < time)
    width: tl.constexpr = heads * 2 * half
    places = (row * time + first) * width + at * width + head * 2 * half + part
    flow = tl.load(arriving + places, mask=there, other=0.0).to(tl.float32)
    drift = tl.load(arriving + places + half, mask=there, other=0.0).to(tl.float32)
    if turned:
        places = row * table_stride + (first + at) * half + part
        cos = tl.load(cosine + places, mask=first + at < time, other=0.0)
        sin = tl.load(sine + places, mask=first + at < time, other=0.0)
    if bounded or levels > 0:
        x += (row * time + first) * stride
        tail += row * (count - 1) * channels
        channel = start + head * 2 * half + part
        y = _convolved(x, taps, tail, first, time, at, channel, inside, stride, channels, count)
        z = _convolved(x, taps, tail, first, time, at, channel + half, inside, stride, channels, count)
        if turned:
            y, z = y * cos - z * sin, z * cos + y * sin
        if levels > 0:
            theta = _threshold(y, z, 1.0 / width, alpha, least, most)
            edge = limit * 2.0 * theta
            # Zero as a multiple of the factor: what is not a number is not cut off either.
            factor = gradient_scale if scaled else gradient_scale / (2.0 * theta)
            factor = tl.where(theta > 0, factor, float("nan"))
            passed, let = tl.where(tl.abs(y) <= edge, factor, 0.0 * factor), tl.where(tl.abs(z) <= edge, factor, 0.0 * factor)
        if bounded:
            if levels > 0:
                y, z = _spikes(y, theta, levels, compared), _spikes(z, theta, levels, compared)
                if scaled:
                    y, z = y * 2.0 * theta, z * 2.0 * theta
            length = tl.sum(y * y + z * z, 2)
            inverse = tl.rsqrt(tl.maximum(length, 1.0))
            along = tl.sum(flow * y + drift * z, 2) * inverse * inverse * inverse
            along = tl.where(length >= 1.0, along, 0.0)[:, :, None]
            inverse = inverse[:, :, None]
            flow, drift = flow * inverse - along * y, drift * inverse - along * z
        if levels > 0:
            flow, drift = flow * passed, drift * let
    if turned:
        flow, drift = flow * cos + drift * sin, drift * cos - flow * sin
    places = (row * time + first) * 2 * width + at * 2 * width + place * width + head * 2 * half + part
    tl.store(gradient + places, flow.to(gradient.dtype.element_ty), mask=there)
    tl.store(gradient + places + half, drift.to(gradient.dtype.element_ty), mask=there)
    if rest_width > 0:
        token, column = tl.arange(0, tokens)[:, None], tl.arange(0, rest_block)[None, :]
        there = (first + token < time) & (column < rest_width)
        found = tl.load(rest_arriving + (row * time + first) * rest_width + token * rest_width + column, mask=there)
        places = (row * time + first) * (channels + rest_width) + token * (channels + rest_width) + channels + column
        tl.store(rest_gradient + places, found.to(rest_gradient.dtype.element_ty), mask=there)


@triton.jit
@no_type_check
def _ahead(arriving, width, at, place, column, there):
    """What arrives at the tokens `place` behind those at `at`, as (place token channel)."""
    return tl.load(arriving + (at + place) * width + column, mask=there, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def convolution_backward_kernel(
    x, taps, tail, cosine, sine, read_arriving, arriving, gradient, tail_gradient, partial,
    rows, time, stride, table_stride, read_width, state_width, channels, columns,
    half: tl.constexpr, tokens: tl.constexpr, count: tl.constexpr, counted: tl.constexpr, turned: tl.constexpr,
):  # fmt: skip
    """The gradients of one head's projections and tail, and each program's sum of those of its taps.

    Those of r arrive as the recurrence gives them and are turned back here; those of k and v come from
    `site_backward_kernel`. Tokens are counted from the tail's earliest on, which precedes a row's first. A thread keeps
    its own sums of the taps' gradients until its last token: only then do threads wait for each other.
    """
    place, at = tl.arange(0, counted)[:, None, None], tl.arange(0, tokens)[None, :, None]
    part = tl.arange(0, half)[None, None, :]
    column = tl.program_id(1) * 2 * half + part
    known = place < count
    factor = tl.load(taps + place * channels + column, mask=known, other=0.0)
    factor_z = tl.load(taps + place * channels + column + half, mask=known, other=0.0)
    sums, sums_z = tl.zeros((counted, tokens, half), tl.float32), tl.zeros((counted, tokens, half), tl.float32)
    tiles = tl.cdiv(time + count - 1, tokens)
    for tile in range(tl.program_id(0), rows * tiles, tl.num_programs(0)):
        row, first = (tile // tiles).to(tl.int64), (tile % tiles) * tokens - (count - 1)
        begin, token = row * time + first, first + at
        there = known & (token + place >= 0) & (token + place < time)
        given = (token >= 0) & (token < time)
        y = tl.load(x + begin * stride + at * stride + column, mask=given, other=0.0).to(tl.float32)
        z = tl.load(x + begin * stride + at * stride + column + half, mask=given, other=0.0).to(tl.float32)
        if tl.program_id(1) * 2 * half < read_width:
            source = read_arriving + begin * read_width
            flow = _ahead(source, read_width, at, place, column, there)
            drift = _ahead(source, read_width, at, place, column + half, there)
            if turned:
                places = row * table_stride + (token + place) * half + part
                cos = tl.load(cosine + places, mask=there, other=0.0)
                sin = tl.load(sine + places, mask=there, other=0.0)
                flow, drift = flow * cos + drift * sin, drift * cos - flow * sin
        else:
            source = arriving + begin * 2 * state_width - read_width
            flow = _ahead(source, 2 * state_width, at, place, column, there)
            drift = _ahead(source, 2 * state_width, at, place, column + half, there)
        found, found_z = tl.sum(factor * flow, 0)[None, :, :], tl.sum(factor_z * drift, 0)[None, :, :]
        places = gradient + begin * columns + at * columns + column
        tl.store(places, found.to(gradient.dtype.element_ty), mask=given)
        tl.store(places + half, found_z.to(gradient.dtype.element_ty), mask=given)
        if count > 1:
            if first < 0:
                earlier = token < 0
                places = (row * (count - 1) - 1 - token) * channels + column
                y += tl.load(tail + places, mask=earlier, other=0.0).to(tl.float32)
                z += tl.load(tail + places + half, mask=earlier, other=0.0).to(tl.float32)
                tl.store(tail_gradient + places, found.to(tail_gradient.dtype.element_ty), mask=earlier)
                tl.store(tail_gradient + places + half, found_z.to(tail_gradient.dtype.element_ty), mask=earlier)
        sums += flow * y
        sums_z += drift * z
    places = partial + (tl.program_id(0) * count + place) * channels + column
    tl.store(places, tl.sum(sums, 1)[:, None, :], mask=known)
    tl.store(places + half, tl.sum(sums_z, 1)[:, None, :], mask=known)
