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
    if first < count - 1:
        for place in tl.static_range(1, count):
            factor = tl.load(taps + place * channels + channel, mask=inside, other=0.0)
            behind = place - 1 - first - at
            places = tail + behind * channels + channel
            mixed += factor * tl.load(places, mask=present & (behind >= 0), other=0.0).to(tl.float32)
    return mixed


@triton.jit
@no_type_check
def _angles(cosine, sine, row, step, token, part, distance, half: tl.constexpr, there):
    """Cosine and sine of tokens `step + token` of one row, whose tables lie `distance` numbers apart."""
    begin, places = row * distance + step * half, token * half + part
    cos = tl.load(cosine + begin + places, mask=there, other=0.0)
    return cos, tl.load(sine + begin + places, mask=there, other=0.0)


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
    x, taps, tail, cosine, sine, own, made, spikes, rest,
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
    if own is not None:
        alpha *= tl.load(own)
    made += (row * time + first) * width
    if levels > 0:
        spikes += (row * time + first) * width
    if turned:
        cos, sin = _angles(cosine, sine, row, first, at, part, table_stride, half, first + at < time)
    for turn in range(turns):
        head = (tl.program_id(2) * turns + turn) * span + tl.arange(0, span)[None, :, None]
        inside = head < heads
        channel = start + head * 2 * half + part
        y = _convolved(x, taps, tail, first, time, at, channel, inside, stride, channels, count)
        z = _convolved(x, taps, tail, first, time, at, channel + half, inside, stride, channels, count)
        if turned:
            y, z = y * cos - z * sin, z * cos + y * sin
        there = inside & (first + at < time)
        places = at * width + head * 2 * half + part
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
        rest += (row * time + first) * rest_width
        tl.store(rest + token * rest_width + column, found, mask=there)


@triton.jit
@no_type_check
def site_backward_kernel(
    x, taps, tail, cosine, sine, own, arriving, gradient, rest_arriving, rest_gradient,
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
    if own is not None:
        alpha *= tl.load(own)
    arriving += (row * time + first) * width
    places = at * width + head * 2 * half + part
    flow = tl.load(arriving + places, mask=there, other=0.0).to(tl.float32)
    drift = tl.load(arriving + places + half, mask=there, other=0.0).to(tl.float32)
    if turned:
        cos, sin = _angles(cosine, sine, row, first, at, part, table_stride, half, first + at < time)
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
            passed, passed_z = tl.abs(y) <= edge, tl.abs(z) <= edge
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
            flow *= tl.where(passed, factor, 0.0 * factor)
            drift *= tl.where(passed_z, factor, 0.0 * factor)
    if turned:
        flow, drift = flow * cos + drift * sin, drift * cos - flow * sin
    gradient += (row * time + first) * 2 * width
    places = (2 * at + place) * width + head * 2 * half + part
    tl.store(gradient + places, flow.to(gradient.dtype.element_ty), mask=there)
    tl.store(gradient + places + half, drift.to(gradient.dtype.element_ty), mask=there)
    if rest_width > 0:
        token, column = tl.arange(0, tokens)[:, None], tl.arange(0, rest_block)[None, :]
        there = (first + token < time) & (column < rest_width)
        rest_arriving += (row * time + first) * rest_width
        rest_gradient += (row * time + first) * (channels + rest_width) + channels
        found = tl.load(rest_arriving + token * rest_width + column, mask=there)
        tl.store(rest_gradient + token * (channels + rest_width) + column, found, mask=there)


@triton.jit
@no_type_check
def _arriving(source, width, at, column, there, cosine, sine, begin, part, half: tl.constexpr, turned: tl.constexpr):
    """Both halves of what arrives at tokens `at`, turned back where it was turned."""
    y = tl.load(source + (at * width + column), mask=there, other=0.0).to(tl.float32)
    z = tl.load(source + (at * width + column + half), mask=there, other=0.0).to(tl.float32)
    if turned:
        cos = tl.load(cosine + begin + (at * half + part), mask=there, other=0.0)
        sin = tl.load(sine + begin + (at * half + part), mask=there, other=0.0)
        y, z = y * cos + z * sin, z * cos - y * sin
    return y, z


@triton.jit
@no_type_check
def _head_backward(
    x, taps, tail, cosine, sine, arriving, gradient, tail_gradient, partial,
    rows, time, stride, table_stride, width, channel, column, channels, columns,
    half: tl.constexpr, tokens: tl.constexpr, count: tl.constexpr, turned: tl.constexpr,
):  # fmt: skip
    """One head's part of the kernel below: `channel` counts those of all sites, `column` those of what arrives."""
    at, part = tl.arange(0, tokens)[:, None], tl.arange(0, half)[None, :]
    factors, sums = (), ()
    for place in tl.static_range(count):
        factors += (tl.load(taps + place * channels + channel), tl.load(taps + place * channels + channel + half))
        sums += (tl.zeros((tokens, half), tl.float32), tl.zeros((tokens, half), tl.float32))
    tiles = tl.cdiv(time + count - 1, tokens)
    for tile in range(tl.program_id(0), rows * tiles, tl.num_programs(0)):
        row, first = (tile // tiles).to(tl.int64), (tile % tiles) * tokens - (count - 1)
        begin, token = row * time + first, first + at
        given = (token >= 0) & (token < time)
        places = x + begin * stride + (at * stride + channel)
        y = tl.load(places, mask=given, other=0.0).to(tl.float32)
        z = tl.load(places + half, mask=given, other=0.0).to(tl.float32)
        past = row * (count - 1) * channels + ((-1 - token) * channels + channel)
        if first < 0:
            y += tl.load(tail + past, mask=token < 0, other=0.0).to(tl.float32)
            z += tl.load(tail + past + half, mask=token < 0, other=0.0).to(tl.float32)
        found, found_z = tl.zeros((tokens, half), tl.float32), tl.zeros((tokens, half), tl.float32)
        later = ()
        for place in tl.static_range(count):
            there = (token + place >= 0) & (token + place < time)
            flow, drift = _arriving(
                arriving + begin * width, width, at + place, column, there,
                cosine, sine, row * table_stride + first * half, part, half, turned,
            )  # fmt: skip
            found += factors[2 * place] * flow
            found_z += factors[2 * place + 1] * drift
            later += (sums[2 * place] + flow * y, sums[2 * place + 1] + drift * z)
        sums = later
        places = gradient + begin * columns + (at * columns + channel)
        tl.store(places, found.to(gradient.dtype.element_ty), mask=given)
        tl.store(places + half, found_z.to(gradient.dtype.element_ty), mask=given)
        if first < 0:
            tl.store(tail_gradient + past, found.to(tail_gradient.dtype.element_ty), mask=token < 0)
            tl.store(tail_gradient + past + half, found_z.to(tail_gradient.dtype.element_ty), mask=token < 0)
    for place in tl.static_range(count):
        places = partial + (tl.program_id(0) * count + place) * channels + channel
        tl.store(places, tl.sum(sums[2 * place], 0)[None, :])
        tl.store(places + half, tl.sum(sums[2 * place + 1], 0)[None, :])


@triton.jit
@no_type_check
def convolution_backward_kernel(
    x, taps, tail, cosine, sine, read_arriving, arriving, gradient, tail_gradient, partial,
    rows, time, stride, table_stride, read_width, state_width, channels, columns,
    half: tl.constexpr, tokens: tl.constexpr, count: tl.constexpr, turned: tl.constexpr,
):  # fmt: skip
    """The gradients of one head's projections and tail, and each program's sum of those of its taps.

    Those of r arrive as the recurrence gives them and are turned back here; those of k and v come from
    `site_backward_kernel`. Tokens are counted from the tail's earliest on, which precedes a row's first. A thread keeps
    its own sums of the taps' gradients until its last token: only then do threads wait for each other.
    """
    # Four channels a thread: twice as many would be read at once, and leave no registers.
    channel = tl.program_id(1) * 2 * half + tl.max_contiguous(tl.arange(0, half), 4)[None, :]
    if tl.program_id(1) * 2 * half < read_width:
        _head_backward(
            x, taps, tail, cosine, sine, read_arriving, gradient, tail_gradient, partial,
            rows, time, stride, table_stride, read_width, channel, channel, channels, columns,
            half, tokens, count, turned,
        )  # fmt: skip
    else:
        _head_backward(
            x, taps, tail, cosine, sine, arriving, gradient, tail_gradient, partial,
            rows, time, stride, table_stride, 2 * state_width, channel, channel - read_width, channels, columns,
            half, tokens, count, False,
        )  # fmt: skip
