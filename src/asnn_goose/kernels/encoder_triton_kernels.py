"""The two Triton kernels of the spike encoder: an optional norm and the staircase in one pass, and their gradient.

A program holds a tile of whole tokens in registers, so that each number is read from memory once each way. With y the
channels that the threshold sees (x, or its norm), theta = clamp(alpha * mean|y|) and the step 2 theta, the value of
|y| is the number of edges theta, 3 theta, 5 theta, ... that it reaches: the staircase floor(|y| / step + 1/2) without
a division, which would take as long as the memory does.
"""

from typing import no_type_check

from asnn_goose.errors import MachineError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise MachineError(
        f"the Triton spike encoder needs triton, which cannot be imported ({error}): use a CUDA build of torch on "
        "Linux, or let the encoder take its torch form"
    ) from error


@triton.jit
@no_type_check
def encode_kernel(
    x, weight, bias, values, steps, moments, tokens, stride, epsilon, alpha, least, most,
    norm: tl.constexpr, levels: tl.constexpr, compared: tl.constexpr, whole: tl.constexpr,
    width: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Spikes and step of each token, and what its norm divided by and subtracted; `whole` if spikes are integers."""
    # A mean is a product, as in torch: a quotient is an approximation on a GPU.
    share: tl.constexpr = 1.0 / width
    token = (tl.program_id(0) * rows + tl.arange(0, rows)).to(tl.int64)
    channel = tl.arange(0, block)
    present, inside = token < tokens, channel < width
    there = present[:, None] & inside[None, :]
    y = tl.load(x + token[:, None] * stride + channel[None, :], mask=there, other=0.0).to(tl.float32)
    if norm != "none":
        if norm == "layer":
            mean = tl.sum(y, 1) * share
            tl.store(moments + tokens + token, mean, mask=present)
            y = tl.where(there, y - mean[:, None], 0.0)
        inverse = tl.rsqrt(tl.sum(y * y, 1) * share + epsilon)
        tl.store(moments + token, inverse, mask=present)
        y = y * inverse[:, None] * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
        if bias is not None:
            y += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    size = tl.abs(y)
    mean_size = tl.sum(size, 1) * share
    theta = alpha * mean_size
    theta = tl.where(theta < least, least, theta)
    theta = tl.where(theta > most, most, theta)
    # A token that holds a number that is none becomes one altogether, for the guards of training to see.
    finite = mean_size < float("inf")
    theta = tl.where(finite, theta, float("nan"))
    tl.store(steps + token, 2.0 * theta, mask=present)
    if levels <= compared:
        reached, missed = tl.where(finite, 1.0, float("nan"))[:, None], tl.where(finite, 0.0, float("nan"))[:, None]
        height = tl.where(size >= theta[:, None], reached, missed)
        for level in tl.static_range(1, levels):
            height += tl.where(size >= ((2 * level + 1) * theta)[:, None], reached, missed)
    else:
        height = tl.floor(tl.div_rn(size, (2.0 * theta)[:, None]) + 0.5)
        height = tl.where(height > levels, levels, height)
    if whole:
        # No integer stands for such a token: it is silent, and its step says why.
        height = tl.where(finite[:, None], height, 0.0)
    spikes = tl.where(y < 0, -height, height)
    places = values + token[:, None] * width + channel[None, :]
    tl.store(places, spikes.to(values.dtype.element_ty), mask=there)


@triton.jit
@no_type_check
def encode_backward_kernel(
    x, weight, bias, steps, moments, arriving, gradient, partial,
    tokens, stride, arriving_stride, limit, gradient_scale,
    norm: tl.constexpr, width: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The gradient of x; and of the norm's weight and bias each program's sum over its own tokens."""
    share: tl.constexpr = 1.0 / width
    channel = tl.arange(0, block)
    inside = channel < width
    if norm != "none":
        of_weight = tl.zeros((block,), tl.float32)
        if bias is not None:
            of_bias = tl.zeros((block,), tl.float32)
    for first in range(tl.program_id(0) * rows, tokens, tl.num_programs(0) * rows):
        token = (first + tl.arange(0, rows)).to(tl.int64)
        present = token < tokens
        there = present[:, None] & inside[None, :]
        y = tl.load(x + token[:, None] * stride + channel[None, :], mask=there, other=0.0).to(tl.float32)
        places = arriving + token[:, None] * arriving_stride + channel[None, :]
        flow = tl.load(places, mask=there, other=0.0).to(tl.float32)
        step = tl.load(steps + token, mask=present, other=1.0)
        if norm != "none":
            inverse = tl.load(moments + token, mask=present, other=0.0)[:, None]
            if norm == "layer":
                y -= tl.load(moments + tokens + token, mask=present, other=0.0)[:, None]
            unit = y * inverse
            gain = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
            y = unit * gain
            if bias is not None:
                y += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
        # Zero as a multiple of the factor: what is not a number is not cut off either.
        factor = (gradient_scale / step)[:, None]
        flow *= tl.where(tl.abs(y) <= (limit * step)[:, None], factor, 0.0 * factor)
        if norm != "none":
            along = flow * unit
            of_weight += tl.sum(along, 0)
            if bias is not None:
                of_bias += tl.sum(flow, 0)
            flow *= gain
            common = (tl.sum(along * gain, 1) * share)[:, None]
            if norm == "layer":
                flow -= (tl.sum(flow, 1) * share)[:, None]
            flow = (flow - unit * common) * inverse
        places = gradient + token[:, None] * width + channel[None, :]
        tl.store(places, flow.to(gradient.dtype.element_ty), mask=there)
    if norm != "none":
        if bias is not None:
            places = partial + tl.program_id(0) * 2 * width + channel
            tl.store(places + width, of_bias, mask=inside)
        else:
            places = partial + tl.program_id(0) * width + channel
        tl.store(places, of_weight, mask=inside)
