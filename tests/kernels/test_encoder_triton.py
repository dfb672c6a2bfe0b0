import importlib
import inspect
import math
import sys
from dataclasses import replace

import pytest
import torch

from asnn_goose.errors import MachineError

pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its spike encoder")
from asnn_goose.kernels import encoder_triton
from asnn_goose.kernels.encoder_triton import Normalization, encode_normalized_triton, encode_triton

RANGE = (0.01, 10.0)
ALPHA, GRADIENT_SCALE = 0.8, 0.5
# Large enough to be missed where it is left out, and so that a token of one channel keeps some of its gradient.
EPS = 0.1
# Float32 sums move an edge by less than this share of it, and hardly a spike in so many lies that near.
EDGE, EDGE_SHARE = 1e-5, 1e-5
# Relative to the norm of the tensor: a handful of float32 operations; then the rounding of a gradient in x's own type.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}
NORMS = [None, "rms", "rms with bias", "layer", "layer with bias"]
# Levels and the largest |z| that has a gradient: clipped for one and four levels and for more, and not clipped.
STAIRCASES = [(1, 1.2), (4, 4.2), (8, 8.2), (1, math.inf), (4, math.inf)]
SIZES = [(37, 1), (1, 5), (37, 64), (3, 100), (3, 257)]


def tokens(count, width, dtype=torch.float32):
    """Random tokens that the dtype holds exactly, in float64; from three on a silent, a faint and a loud one."""
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    if count > 2:
        x[0], x[1], x[2] = 0.0, 1e-4 * x[1], 100.0 * x[2]
    return x.to(dtype).double()


def norm(kind, width):
    """A norm in float64 whose factors have both signs."""
    if kind is None:
        return None
    weight, bias = torch.randn(2, width, generator=torch.Generator().manual_seed(1)).double()
    return Normalization(kind.split()[0], weight, bias if kind.endswith("bias") else None, EPS)


def defined(x, norm, levels, limit):
    """Values, step, |z| and what has the surrogate's gradient, from the equations alone."""
    if norm is not None:
        x = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x
        x = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
        x = x if norm.bias is None else x + norm.bias
    step = 2.0 * (ALPHA * x.detach().abs().mean(-1, keepdim=True)).clamp(*RANGE)
    z = x / step
    values = z.sign() * (z.abs() + 0.5).floor().clamp_max(levels)
    return values.detach(), step, z.detach().abs(), GRADIENT_SCALE * z * (z.detach().abs() <= limit)


def encode(x, norm, levels, limit, dtype=None):
    if norm is None:
        return encode_triton(x, ALPHA, RANGE, levels, limit, GRADIENT_SCALE, dtype)
    return encode_normalized_triton(x, norm, ALPHA, RANGE, levels, limit, GRADIENT_SCALE, dtype)


def cast(x, norm, device, dtype, norm_dtype=torch.float32):
    """Leaves that have gradients."""
    x = x.to(device, dtype).requires_grad_()
    if norm is None:
        return x, None
    weight = norm.weight.to(device, norm_dtype).requires_grad_()
    bias = None if norm.bias is None else norm.bias.to(device, norm_dtype).requires_grad_()
    return x, replace(norm, weight=weight, bias=bias)


def leaves(x, norm):
    return [part for part in (x, *((norm.weight, norm.bias) if norm else ())) if part is not None]


def arriving(values):
    """Fixed incoming gradients, the same for every dtype and device."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(values.shape, generator=generator).bfloat16().to(values.device)


def results(x, norm, levels=1, limit=1.2, dtype=None, incoming=None):
    """Values, step, and the gradients of x, weight and bias."""
    values, step = encode(x, norm, levels, limit, dtype)
    incoming = arriving(values) if incoming is None else incoming
    return values.detach(), step, torch.autograd.grad(values, leaves(x, norm), incoming.to(values))


def assert_as_defined(x, kind, device, levels=1, limit=1.2, dtype=torch.float32):
    exact = norm(kind, x.shape[-1])
    truth = cast(x, exact, device, torch.float64, torch.float64)
    expected, true_step, size, passed = defined(*truth, levels, limit)
    # Rounding decides what has a gradient at the limit itself.
    incoming = arriving(size) * ~size.isclose(torch.full_like(size, limit), rtol=EDGE, atol=0.0)
    true_gradients = torch.autograd.grad(passed, leaves(*truth), incoming.double())
    values, step, gradients = results(*cast(x, exact, device, dtype), levels, limit, incoming=incoming)
    differing, edge = values.double() != expected, size.floor() + 0.5
    assert differing.sum() <= EDGE_SHARE * differing.numel()
    assert ((size - edge).abs()[differing] <= EDGE * edge[differing]).all()
    torch.testing.assert_close(step.double(), true_step, rtol=1e-5, atol=0.0)
    for found, true in zip(gradients, true_gradients, strict=True):
        # A single channel's layer norm has no gradient: what is found is rounding of what arrives.
        assert (found.double() - true).norm() <= TOLERANCE[found.dtype] * (true.norm() + incoming.double().norm())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", NORMS)
def test_spikes_steps_and_gradients_are_the_defined_ones_at_any_size(size, kind, kernel_device):
    assert_as_defined(tokens(*size), kind, kernel_device)


@pytest.mark.parametrize(("levels", "limit"), STAIRCASES)
@pytest.mark.parametrize("kind", [None, "layer with bias"])
def test_spikes_steps_and_gradients_are_the_defined_ones_for_any_staircase(levels, limit, kind, kernel_device):
    assert_as_defined(tokens(7, 64), kind, kernel_device, levels, limit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [None, "rms", "layer with bias"])
def test_half_width_tokens_lose_only_the_rounding_of_their_gradient(dtype, kind, kernel_device):
    assert_as_defined(tokens(5, 100, dtype), kind, kernel_device, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(24_576, 192), (24_576, 576), (24_576, 1536), (2048, 8192)])
@pytest.mark.parametrize("kind", [None, "rms", "layer with bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spikes_steps_and_gradients_are_the_defined_ones_of_many_tokens(size, kind, dtype):
    assert_as_defined(tokens(*size, dtype), kind, "cuda", dtype=dtype)


@pytest.mark.parametrize("resident", [1, 3])
@pytest.mark.parametrize("kind", ["rms", "layer with bias"])
def test_few_programs_sum_the_gradients_of_many_tokens(resident, kind, kernel_device, monkeypatch):
    monkeypatch.setattr(encoder_triton, "MULTIPROCESSORS", 1)
    monkeypatch.setattr(encoder_triton, "RESIDENT_WARPS", resident)
    assert_as_defined(tokens(70, 64), kind, kernel_device)


@pytest.mark.parametrize("kind", NORMS)
def test_silent_tokens_stay_finite_forward_and_backward(kind, kernel_device):
    x, used = cast(torch.zeros(3, 5, dtype=torch.float64), norm(kind, 5), kernel_device, torch.float32)
    values, step, gradients = results(x, used)
    if kind is None or not kind.endswith("bias"):
        assert values.count_nonzero() == 0
        assert torch.equal(step, torch.full_like(step, 2 * RANGE[0]))
    assert all(part.isfinite().all() for part in gradients)


@pytest.mark.parametrize("levels", [1, 4, 8])
@pytest.mark.parametrize("kind", [None, "rms"])
def test_every_channel_spikes_where_all_are_alike(levels, kind, kernel_device):
    x = torch.tensor([[0.3, -0.3, 0.3, 0.3, -0.3]])
    used = None if kind is None else Normalization(kind, torch.ones(5, device=kernel_device), None, EPS)
    values, _ = encode(x.to(kernel_device), used, levels, 1.2)
    assert torch.equal(values.cpu(), x.sign())


@pytest.mark.parametrize("levels", [1, 4, 8])
def test_an_activation_at_the_threshold_itself_spikes(levels, kernel_device):
    x = torch.tensor([[0.5, -0.5, 0.5, 0.5]])
    values, step = encode_triton(x.to(kernel_device), 1.0, RANGE, levels, 1.5, 1.0)
    assert torch.equal(values.cpu(), x.sign())
    assert step.item() == 1.0


@pytest.mark.parametrize("levels", [1, 4, 8])
@pytest.mark.parametrize("kind", [None, "layer with bias"])
def test_int8_spikes_are_the_floating_ones_without_a_gradient(levels, kind, kernel_device):
    x, used = cast(tokens(5, 64), norm(kind, 64), kernel_device, torch.float32)
    values, step = encode(x, used, levels, 1.2)
    small, same_step = encode(x, used, levels, 1.2, torch.int8)
    assert small.dtype == torch.int8
    assert torch.equal(small.float(), values.detach())
    # Two compilations may contract a product and a sum differently.
    torch.testing.assert_close(same_step, step, rtol=1e-6, atol=0.0)
    assert values.requires_grad
    assert not small.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_width_tokens_have_the_same_float32_spikes_if_asked(dtype, kernel_device):
    x, _ = cast(tokens(5, 64, dtype), None, kernel_device, dtype)
    narrow, wide = results(x, None), results(x, None, dtype=torch.float32)
    assert (narrow[0].dtype, wide[0].dtype, wide[2][0].dtype) == (dtype, torch.float32, dtype)
    for one, other in zip((*narrow[:2], *narrow[2]), (*wide[:2], *wide[2]), strict=True):
        assert torch.equal(one.float(), other.float())


@pytest.mark.parametrize("kind", [None, "rms", "layer with bias"])
def test_every_bit_is_the_same_a_second_time(kind, kernel_device):
    x, used = cast(tokens(37, 64), norm(kind, 64), kernel_device, torch.float32)
    first, second = results(x, used), results(x, used)
    for one, other in zip((*first[:2], *first[2]), (*second[:2], *second[2]), strict=True):
        assert torch.equal(one, other)


def test_any_strides_and_batches_give_what_dense_tokens_give(kernel_device):
    whole = tokens(6, 100).float().to(kernel_device)
    dense = results(whole[:, 20:84].contiguous().requires_grad_(), None)
    for x in (whole.view(2, 3, 100)[..., 20:84], whole.T.contiguous()[20:84].T, whole[:, 20:84]):
        values, step, (gradient,) = results(x.detach().requires_grad_(), None)
        assert (values.shape, step.shape, gradient.shape) == (x.shape, (*x.shape[:-1], 1), x.shape)
        for found, expected in zip((values, step, gradient), (*dense[:2], *dense[2]), strict=True):
            assert torch.equal(found.reshape(expected.shape), expected)


def test_no_tokens_give_no_spikes_and_no_gradient_of_the_weight(kernel_device):
    x, used = cast(torch.zeros(2, 0, 64), norm("layer with bias", 64), kernel_device, torch.float32)
    values, step, (_, weight, bias) = results(x, used)
    assert (values.shape, step.shape) == ((2, 0, 64), (2, 0, 1))
    assert weight.count_nonzero() == bias.count_nonzero() == 0


# numpy, in which the interpreter counts, warns where a GPU does not.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("levels", [1, 8])
@pytest.mark.parametrize("kind", [None, "rms", "layer with bias"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_is_not_turned_into_a_spike_unseen(levels, kind, poison, kernel_device):
    """The guards of training look at the loss and the gradients: a number that is none must reach both."""
    x = torch.ones(3, 5, dtype=torch.float64)
    x[1, 2] = poison
    x, used = cast(x, norm(kind, 5), kernel_device, torch.float32)
    values, step, gradients = results(x, used, levels)
    for part in (values, step, gradients[0]):
        assert part[1].isnan().all()
        assert part[::2].isfinite().all()
    assert all(part.isnan().all() for part in gradients[1:])
    small, step = encode(x, used, levels, 1.2, torch.int8)
    assert small[1].count_nonzero() == 0
    assert step[1].isnan()


def test_a_compiled_call_is_one_operator_with_the_same_gradients(kernel_device):
    # Without the shape checks of the test run, which the compiler cannot trace.
    plain = inspect.unwrap(encode_normalized_triton)
    compiled = torch.compile(plain, backend="aot_eager", fullgraph=True, dynamic=False)
    x, used = cast(tokens(3, 64), norm("layer with bias", 64), kernel_device, torch.float32)
    values, step = compiled(x, used, ALPHA, RANGE, 1, 1.2, GRADIENT_SCALE)
    expected = results(x, used)
    gradients = torch.autograd.grad(values, leaves(x, used), arriving(values))
    for found, true in zip((values, step, *gradients), (*expected[:2], *expected[2]), strict=True):
        assert torch.equal(found, true)


@pytest.mark.parametrize(
    ("x", "choices", "message"),
    [
        (torch.ones(2, 3).double(), {}, r"float32, bfloat16 or float16, got torch\.float64: use the torch form"),
        (torch.ones(2, 8193), {}, r"1 to 8192 channels, got 8193"),
        (torch.ones(2, 0), {}, r"1 to 8192 channels, got 0"),
        (torch.ones(2, 3), {"dtype": torch.int32}, r"float32, bfloat16, float16 or int8, got torch\.int32"),
        (torch.ones(2, 3), {"levels": 128, "dtype": torch.int8}, r"int8 hold 1 to 127 levels exactly, got 128"),
        (torch.ones(2, 3), {"levels": 0}, r"hold 1 to 16777216 levels exactly, got 0"),
        (torch.ones(2, 3), {"width": 4}, r"weight must have shape \(3,\).*got \(4,\) in torch\.float32"),
    ],
)
def test_what_has_no_kernel_is_refused(x, choices, message):
    used = Normalization("rms", torch.ones(choices["width"]), None, EPS) if "width" in choices else None
    with pytest.raises(ValueError, match=message):
        encode(x, used, choices.get("levels", 1), 1.2, choices.get("dtype"))


def test_a_machine_without_triton_is_told_what_to_use_instead(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("encoder_triton", "encoder_triton_kernels"):
        monkeypatch.delitem(sys.modules, f"asnn_goose.kernels.{name}", raising=False)
    with pytest.raises(MachineError, match=r"needs triton.*torch form"):
        importlib.import_module("asnn_goose.kernels.encoder_triton")
