import importlib
import math
import sys
from dataclasses import replace

import pytest
import torch

from asnn_goose.errors import MachineError

pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test a mixer's inputs")
from asnn_goose.kernels import mixer_inputs_triton as mixer_inputs_triton_module
from asnn_goose.kernels.mixer_inputs_triton import mixer_inputs_triton
from asnn_goose.kernels.site_encoding import SiteEncoding

RANGE = (0.01, 10.0)
# Largest deviation relative to the largest entry: a handful of float32 operations, and sums over 150 tokens of them;
# then the rounding of results and gradients to bfloat16.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
# A spike flips where |x| lies this near to an edge, relative to the edge: float32 sums decide there.
EDGE = 1e-4
TERNARY = SiteEncoding(levels=1, alpha=0.9, limit=1.5, gradient_scale=1.0, scaled=True)
UNIT = replace(TERNARY, alpha=0.6, scaled=False, limit=math.inf, gradient_scale=0.5)
FOUR = replace(TERNARY, levels=4, alpha=0.4, limit=4.5)
NEVER, ALWAYS = replace(TERNARY, alpha=1e4), replace(UNIT, alpha=0.0)
SMALL = (3, 1, 16)
MANY = replace(FOUR, levels=8, limit=8.5, scaled=False)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tables(rows, time, width, seed=0):
    """Cosine and sine of any angles: rows differ, as where some tokens of a row are padding."""
    angles = 3 * noise(rows, time, width // 2, seed=seed)
    return angles.cos(), angles.sin()


def given(batch, time, heads, taps=4, rest=0, turned=True):
    """Projections, taps, tail and tables; some tokens are silent, faint and loud."""
    read_heads, state_heads, width = heads
    channels = (read_heads + 2 * state_heads) * width
    projected = noise(batch, time, channels + rest)
    if time > 12:
        projected[0, :5], projected[0, 5:10], projected[-1, 3:8] = 0.0, projected[0, 5:10] * 1e-4, 100.0
    factors = noise(taps, channels, seed=1)
    tail = noise(batch, taps - 1, channels, seed=2)
    return projected, factors, tail, tables(batch, time, width) if turned else None


def turn(x, tables):
    if tables is None:
        return x
    cosine, sine = (table.unsqueeze(2) for table in tables)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def encode(x, encoding):
    """What the spikes stand for with the straight-through gradient, the spikes, and where no rounding decides them."""
    size = x.detach().abs()
    step = 2 * (encoding.alpha * size.mean(-1, keepdim=True)).clamp(*RANGE)
    z = size / step
    spikes = x.detach().sign() * (z + 0.5).floor().clamp_max(encoding.levels)
    clear = ((z - (z.floor() + 0.5)).abs() > EDGE) & ((z - encoding.limit).abs() > EDGE)
    through = encoding.gradient_scale * (x - x.detach()) / step * (z <= encoding.limit)
    return (spikes + through) * (step if encoding.scaled else 1.0), spikes, clear


def defined(projected, taps, tail, tables, heads, encodings):
    """r, k, v, the remaining columns and the spikes from the equations alone; then whether all is clear of edges."""
    count, channels = taps.shape
    extended = torch.cat((tail.flip(1), projected[..., :channels]), dim=1)
    time = projected.shape[1]
    mixed = sum(taps[place] * extended[:, count - 1 - place :][:, :time] for place in range(count))
    read, state, width = heads[0] * heads[2], heads[1] * heads[2], heads[2]
    r, k, v = mixed.split((read, state, state), dim=-1)
    r, k = (turn(part.unflatten(-1, (-1, width)), tables).flatten(2) for part in (r, k))
    spikes, clear = [], []
    parts = []
    for part, encoding in zip((k, v), encodings, strict=True):
        value, found, far = (part, part[..., :0], None) if encoding is None else encode(part, encoding)
        parts.append(value)
        spikes.append(found)
        clear.append(far)
    k = parts[0].unflatten(-1, (-1, width))
    length = k.square().sum(-1, keepdim=True)
    k = (k * torch.where(length >= 1, length.clamp_min(1).rsqrt(), 1.0)).flatten(2)
    return (r, k, parts[1], projected[..., channels:]), spikes, clear


def results(form, inputs, heads, encodings, incoming, **choices):
    leaves = [part.detach().requires_grad_() for part in inputs[:3]]
    found = form(*leaves, inputs[3], heads, encodings, **choices)
    outputs = found[0] if isinstance(found[0], tuple) else found[:4]
    sums = sum(
        (output.double() * arriving.to(output.device)).sum() for output, arriving in zip(outputs, incoming, strict=True)
    )
    gradients = torch.autograd.grad(sums, leaves)
    spikes = found[1] if isinstance(found[0], tuple) else found[4:]
    return [part.detach().double().cpu() for part in (*outputs, *gradients)], [part.cpu() for part in spikes]


def assert_as_defined(inputs, heads, encodings, device, dtype=torch.float32):
    inputs = [inputs[0].to(dtype).double(), inputs[1].float().double(), inputs[2].to(dtype).double(), inputs[3]]
    truth, spikes, clear = defined(*inputs, heads, encodings)
    generator = torch.Generator().manual_seed(4)
    incoming = [torch.randn(part.shape, generator=generator).bfloat16().double() for part in truth]
    # A key near length 1, and a number at an edge, may fall on either side.
    for place, far in zip((1, 2), clear, strict=True):
        if far is not None:
            whole = far.all(-1, keepdim=True)
            assert whole.double().mean() > 0.5
            incoming[place] = incoming[place] * whole
    true, _ = results(defined, inputs, heads, encodings, incoming)
    kinds = (dtype, torch.float32, dtype)
    cast = [part.to(device, kind) for part, kind in zip(inputs, kinds, strict=False)]
    turned = None if inputs[3] is None else tuple(table.float().to(device) for table in inputs[3])
    found, found_spikes = results(
        mixer_inputs_triton, (*cast, turned), heads, encodings, incoming, threshold_range=RANGE, dtype=dtype
    )
    for expected, integers, far in zip(spikes, found_spikes, clear, strict=True):
        assert integers.dtype == torch.int8
        assert expected.shape == integers.shape
        assert far is None or torch.equal(expected[far], integers.double()[far])
    for place, (expected, part) in enumerate(zip(true, found, strict=True)):
        difference = (expected - part).abs()
        if place in (1, 2) and clear[place - 1] is not None:
            difference = difference * clear[place - 1].all(-1, keepdim=True)
        assert expected.shape == part.shape
        scale = expected.abs().max() if expected.numel() else 0.0
        assert not expected.numel() or difference.max() <= TOLERANCE[dtype] * scale, place


@pytest.mark.parametrize(
    ("heads", "batch", "time"), [((3, 1, 16), 2, 1), ((3, 3, 16), 1, 5), ((3, 3, 32), 1, 33), ((3, 1, 64), 1, 33)]
)
def test_values_spikes_and_gradients_are_the_defined_ones_at_any_size(heads, batch, time, kernel_device):
    assert_as_defined(given(batch, time, heads, rest=5), heads, (TERNARY, TERNARY), kernel_device)


@pytest.mark.parametrize("taps", [1, 2, 3, 7])
@pytest.mark.parametrize("turned", [True, False])
def test_any_number_of_taps_with_and_without_positions(taps, turned, kernel_device):
    assert_as_defined(given(2, 5, SMALL, taps, turned=turned), SMALL, (TERNARY, TERNARY), kernel_device)


@pytest.mark.parametrize(
    "encodings",
    [(None, None), (TERNARY, None), (None, TERNARY), (UNIT, UNIT), (FOUR, UNIT), (MANY, FOUR), (NEVER, ALWAYS)],
)
def test_any_encoding_of_either_site(encodings, kernel_device):
    assert_as_defined(given(1, 20, SMALL), SMALL, encodings, kernel_device)


@pytest.mark.parametrize(("encodings", "density"), [((NEVER, NEVER), 0.0), ((ALWAYS, ALWAYS), 1.0)])
def test_thresholds_far_below_or_above_make_all_spike_or_none(encodings, density, kernel_device):
    projected, taps, tail, _ = given(1, 3, SMALL)
    parts = [part.float().to(kernel_device) for part in (projected, taps, tail)]
    made = mixer_inputs_triton(*parts, None, SMALL, encodings, RANGE, torch.float32)
    assert all((part != 0).float().mean().item() == density for part in (made.key_spikes, made.value_spikes))


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@pytest.mark.parametrize("encodings", [(None, None), (TERNARY, UNIT)])
def test_half_width_inputs_lose_only_their_rounding(dtype, encodings, kernel_device):
    assert_as_defined(given(2, 33, SMALL, rest=3), SMALL, encodings, kernel_device, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(9, 3, 64), (8, 8, 32), (32, 8, 64), (4, 2, 128)])
@pytest.mark.parametrize("encodings", [(None, None), (TERNARY, TERNARY), (FOUR, UNIT)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_spikes_and_gradients_are_the_defined_ones_of_many_tokens(heads, encodings, dtype):
    assert_as_defined(given(3, 515, heads, rest=48), heads, encodings, "cuda", dtype)


@pytest.mark.parametrize("resident", [1, 4])
def test_few_programs_sum_the_gradients_of_many_tokens(resident, kernel_device, monkeypatch):
    monkeypatch.setattr(mixer_inputs_triton_module, "MULTIPROCESSORS", 1)
    monkeypatch.setattr(mixer_inputs_triton_module, "RESIDENT_PROGRAMS", 5 * resident)
    assert_as_defined(given(2, 70, SMALL), SMALL, (TERNARY, TERNARY), kernel_device)


def test_shared_tables_serve_all_rows(kernel_device):
    projected, taps, tail, (cosine, sine) = given(2, 5, SMALL)
    parts = [part.float().to(kernel_device) for part in (projected, taps, tail)]
    one = [table[:1].float().to(kernel_device) for table in (cosine, sine)]
    rest = SMALL, (TERNARY, TERNARY), RANGE, torch.float32
    expected = mixer_inputs_triton(*parts, tuple(table.repeat(2, 1, 1) for table in one), *rest)
    for shared in (one, [table[0] for table in one], [table.expand(2, -1, -1) for table in one]):
        found = mixer_inputs_triton(*parts, tuple(shared), *rest)
        assert all(torch.equal(part, true) for part, true in zip(found, expected, strict=True))


@pytest.mark.parametrize("own", [(0.7, 1.8), (0.7, None), (None, 1.8)])
def test_a_threshold_factor_on_the_device_is_as_one_that_is_given(own, kernel_device):
    projected, taps, tail, tables = given(2, 9, SMALL)
    tables = tuple(table.float().to(kernel_device) for table in tables)
    made = []
    for place in range(2):
        encodings = tuple(
            replace(TERNARY, alpha=0.8) if factor is None
            else replace(TERNARY, alpha=factor) if place
            else replace(TERNARY, alpha=1.0, own=torch.tensor(factor, device=kernel_device))
            for factor in own
        )  # fmt: skip
        leaves = [part.float().to(kernel_device).requires_grad_() for part in (projected, taps, tail)]
        found = mixer_inputs_triton(*leaves, tables, SMALL, encodings, RANGE, torch.float32)
        made.append((*found, *torch.autograd.grad(sum(part.square().sum() for part in found[:4]), leaves)))
    assert all(torch.equal(part, true) for part, true in zip(*made, strict=True))


def test_rows_may_lie_at_any_distance(kernel_device):
    projected, taps, tail, _ = given(2, 5, SMALL)
    wide = torch.cat((projected, projected), dim=-1).float().to(kernel_device)
    parts = [part.float().to(kernel_device) for part in (taps, tail)]
    rest = None, SMALL, (TERNARY, None), RANGE, torch.float32
    columns = projected.shape[-1]
    found, expected = (
        mixer_inputs_triton(part, *parts, *rest) for part in (wide[..., :columns], projected.float().to(kernel_device))
    )
    assert all(torch.equal(part, true) for part, true in zip(found, expected, strict=True))


def test_silent_tokens_stay_finite_forward_and_backward(kernel_device):
    projected, taps, tail, tables = given(1, 5, SMALL)
    parts = [part.to(kernel_device).float().requires_grad_() for part in (projected * 0, taps, tail * 0)]
    tables = tuple(table.float().to(kernel_device) for table in tables)
    made = mixer_inputs_triton(*parts, tables, SMALL, (TERNARY, UNIT), RANGE, torch.float32)
    gradients = torch.autograd.grad(sum(part.sum() for part in made[:4]), parts)
    assert made.key_spikes.count_nonzero() == made.value_spikes.count_nonzero() == 0
    assert all(part.isfinite().all() for part in (*made, *gradients))


def test_a_token_that_is_no_number_becomes_one_for_guards_to_see(kernel_device):
    projected, taps, tail, _ = given(1, 3, SMALL, taps=1)
    projected[0, 1] = math.nan
    parts = [part.float().to(kernel_device) for part in (projected, taps, tail)]
    made = mixer_inputs_triton(*parts, None, SMALL, (TERNARY, UNIT), RANGE, torch.float32)
    for part in (made.key, made.value):
        assert part[0, 1].isnan().all()
        assert part[0, ::2].isfinite().all()
    assert made.key_spikes[0, 1].count_nonzero() == 0


def test_what_has_no_gradient_arriving_has_none_leaving(kernel_device):
    projected, taps, tail, _ = given(1, 5, SMALL, rest=3)
    parts = [part.to(kernel_device).float().requires_grad_() for part in (projected, taps, tail)]
    made = mixer_inputs_triton(*parts, None, SMALL, (TERNARY, None), RANGE, torch.float32)
    gradient, of_taps, _ = torch.autograd.grad(made.rest.sum(), parts)
    channels = taps.shape[1]
    assert gradient[..., :channels].count_nonzero() == of_taps.count_nonzero() == 0
    assert torch.equal(gradient[..., channels:], torch.ones_like(gradient[..., channels:]))


@pytest.mark.parametrize(
    ("heads", "encoding", "dtype", "message"),
    [
        ((3, 1, 24), None, torch.float32, "powers of two from 16 to 256 as width of a head, got 24"),
        ((3, 1, 8), None, torch.float32, "powers of two from 16 to 256"),
        ((16, 16, 256), None, torch.float32, "at most 2048 channels of k, got 16 heads of 256"),
        (SMALL, replace(TERNARY, levels=200), torch.float32, "1 to 127 levels"),
        (SMALL, None, torch.float64, r"float32 or bfloat16 projections and float32 taps, got torch\.float64"),
    ],
)
def test_sizes_and_dtypes_without_a_kernel_are_refused(heads, encoding, dtype, message):
    channels = (heads[0] + 2 * heads[1]) * heads[2]
    projected, taps, tail = (
        torch.zeros(1, 2, channels, dtype=dtype),
        torch.zeros(1, channels),
        torch.zeros(1, 0, channels),
    )
    with pytest.raises(ValueError, match=message):
        mixer_inputs_triton(projected, taps, tail, None, heads, (encoding, None), RANGE, torch.float32)


def test_more_taps_than_a_thread_can_keep_are_refused():
    with pytest.raises(ValueError, match="at most 8 taps, got 9"):
        mixer_inputs_triton(*given(1, 2, SMALL, taps=9), SMALL, (None, None), RANGE, torch.float32)


def test_without_triton_the_module_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "asnn_goose.kernels.mixer_inputs_triton_kernels")
    with pytest.raises(MachineError, match="let the mixer take its torch form"):
        importlib.import_module("asnn_goose.kernels.mixer_inputs_triton_kernels")
