import importlib
import inspect
import itertools
import sys

import pytest
import torch

from asnn_goose.errors import MachineError
from asnn_goose.kernels.reference import linear_scan_reference

# One rounding a step, summed over at most 257 steps and three rows, relative to the largest entry.
TOLERANCE = 1e-5
NAMES = ("states", "final_state", "k", "v", "decay", "initial_state")
# In the interpreter a step costs milliseconds, so shapes beyond a tile of 32 steps and a block of 32 channels are rare.
SMALL = [(2, 1, 1), (1, 7, 5), (1, 33, 5), (1, 2, 33)]
LARGE = list(itertools.product((3,), (1, 7, 33, 100, 257), (1, 5, 33, 130)))


def sizes(small, large):
    """The sizes for every machine, and those for a GPU alone."""
    return [*small, *(pytest.param(size, marks=pytest.mark.gpu) for size in large)]


@pytest.fixture
def scan():
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its scan")
    return importlib.import_module("asnn_goose.kernels.scan_triton").linear_scan_triton


def inputs(shape):
    """k, v, decay and initial state in float64, with values that float32 holds exactly."""
    generator = torch.Generator().manual_seed(sum(shape))
    batch, _, width = shape
    k, v = torch.randn(2, *shape, generator=generator)
    decay = torch.rand(width, generator=generator) * 0.98 + 0.01
    return [tensor.double() for tensor in (k, v, decay, torch.randn(batch, width, generator=generator))]


def mask(shape):
    valid = torch.rand(shape[:2], generator=torch.Generator().manual_seed(5)) < 0.6
    valid[0, shape[1] // 2 :] = False
    return valid


def results(scan, tensors, valid=None, wanted=(True, True)):
    """States, final state and the gradients through those of the two that are wanted."""
    given = [tensor.detach().requires_grad_() for tensor in tensors]
    outputs = scan(*given, valid)
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(part.shape, generator=generator).to(part) for part in outputs]
    through = [index for index, want in enumerate(wanted) if want]
    picked = [[parts[index] for index in through] for parts in (outputs, weights)]
    gradients = torch.autograd.grad(picked[0], given, picked[1])
    return dict(zip(NAMES, (*(part.detach() for part in outputs), *gradients), strict=True))


def assert_near_the_loop(scan, device, tensors, valid=None, wanted=(True, True)):
    expected = results(linear_scan_reference, tensors, valid, wanted)
    single = [tensor.to(device, torch.float32) for tensor in tensors]
    found = results(scan, single, None if valid is None else valid.to(device), wanted)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        error = (found[name].cpu().double() - value).abs().max()
        assert error <= TOLERANCE * max(1.0, float(value.abs().max())), (name, float(error))


def assert_same_bits(found, expected):
    assert all(torch.equal(found[name], expected[name]) for name in NAMES)


@pytest.mark.parametrize("shape", sizes(SMALL, LARGE))
def test_values_final_state_and_every_gradient_equal_the_reference(scan, kernel_device, shape):
    assert_near_the_loop(scan, kernel_device, inputs(shape))


@pytest.mark.parametrize("shape", sizes([(2, 18, 5)], [(3, 100, 33), (3, 257, 130)]))
def test_equal_to_the_reference_under_a_mask(scan, kernel_device, shape):
    assert_near_the_loop(scan, kernel_device, inputs(shape), mask(shape))


@pytest.mark.parametrize("decay", [1e-6, 1 - 1e-5])
@pytest.mark.parametrize("shape", sizes([(1, 17, 2)], [(3, 257, 33)]))
def test_equal_to_the_reference_at_decays_near_zero_and_one(scan, kernel_device, shape, decay):
    k, v, _, start = inputs(shape)
    rate = torch.full((shape[2],), decay).double()
    assert_near_the_loop(scan, kernel_device, [k, v, rate, start])


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
@pytest.mark.parametrize("shape", sizes([(1, 7, 5)], [(3, 257, 33)]))
def test_each_result_alone_has_its_gradients(scan, kernel_device, shape, wanted):
    assert_near_the_loop(scan, kernel_device, inputs(shape), wanted=wanted)


@pytest.mark.parametrize("shape", sizes([(2, 7, 5)], [(3, 100, 33)]))
def test_masked_steps_leave_no_trace_whatever_their_inputs_hold(scan, kernel_device, shape):
    k, v, decay, start = (tensor.to(kernel_device, torch.float32) for tensor in inputs(shape))
    valid = mask(shape).to(kernel_device)
    spoiled = [tensor.masked_fill(~valid[:, :, None], torch.nan) for tensor in (k, v)]
    found = results(scan, [*spoiled, decay, start], valid)
    assert_same_bits(found, results(scan, [k, v, decay, start], valid))
    assert found["k"][~valid].abs().sum() == found["v"][~valid].abs().sum() == 0


def test_an_all_masked_row_returns_its_initial_state(scan, kernel_device):
    given = [tensor.to(kernel_device, torch.float32) for tensor in inputs((2, 7, 5))]
    _, final = scan(*given, torch.zeros(2, 7, dtype=torch.bool, device=kernel_device))
    assert torch.equal(final, given[3])


@pytest.mark.parametrize("shape", sizes([(2, 7, 5)], [(64, 256, 768)]))
def test_two_runs_give_the_same_bits(scan, kernel_device, shape):
    given = [tensor.to(kernel_device, torch.float32) for tensor in inputs(shape)]
    assert_same_bits(results(scan, given), results(scan, given))


@pytest.mark.parametrize("cut", [1, 17])
@pytest.mark.parametrize("shape", sizes([(1, 19, 5)], [(3, 100, 33)]))
def test_a_sequence_cut_in_two_with_the_state_carried_is_the_whole(scan, kernel_device, shape, cut):
    k, v, decay, start = (tensor.to(kernel_device, torch.float32) for tensor in inputs(shape))
    valid = mask(shape).to(kernel_device)
    whole, last = scan(k, v, decay, start, valid)
    first, state = scan(k[:, :cut], v[:, :cut], decay, start, valid[:, :cut])
    second, end = scan(k[:, cut:], v[:, cut:], decay, state, valid[:, cut:])
    assert torch.equal(torch.cat((first, second), dim=1), whole)
    assert torch.equal(end, last)


@pytest.mark.parametrize("shape", sizes([(2, 7, 5)], [(3, 100, 33)]))
def test_any_strides_give_what_dense_inputs_give(scan, kernel_device, shape):
    given = [tensor.to(kernel_device, torch.float32) for tensor in inputs(shape)]
    turned = [tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in given]
    beside = [*torch.cat(given[:2], dim=-1).chunk(2, dim=-1), *given[2:]]
    for strided in (turned, beside):
        assert_same_bits(results(scan, strided), results(scan, given))


def test_a_compiled_call_is_one_operator_with_the_same_gradients(scan, kernel_device):
    given = [tensor.to(kernel_device, torch.float32) for tensor in inputs((1, 3, 5))]
    # Without the shape checks of the test run, which the compiler cannot trace.
    compiled = torch.compile(inspect.unwrap(scan), backend="aot_eager", fullgraph=True, dynamic=False)
    assert_same_bits(results(compiled, given), results(scan, given))


def test_float64_is_refused(scan, kernel_device):
    with pytest.raises(ValueError, match=r"float32 tensors on a GPU, got k in torch\.float64"):
        scan(*(tensor.to(kernel_device) for tensor in inputs((1, 3, 5))), None)


def test_cpu_tensors_are_refused_where_nothing_interprets_the_kernels(scan, monkeypatch):
    monkeypatch.setattr("asnn_goose.kernels.scan_triton.INTERPRETED", False)
    with pytest.raises(ValueError, match=r"on a GPU, got k in torch\.float32 on cpu; use backend='torch'"):
        scan(*(tensor.float() for tensor in inputs((1, 3, 5))), None)


def test_a_machine_without_triton_is_told_what_to_use_instead(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("scan_triton", "scan_triton_kernels"):
        monkeypatch.delitem(sys.modules, f"asnn_goose.kernels.{name}", raising=False)
    with pytest.raises(MachineError, match=r"needs triton.*choose the torch backend"):
        importlib.import_module("asnn_goose.kernels.scan_triton")
