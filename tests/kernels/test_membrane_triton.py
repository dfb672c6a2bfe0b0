import importlib
import sys

import pytest
import torch

from asnn_goose.errors import MachineError
from asnn_goose.kernels.reference import membrane_reference
from asnn_goose.spikes.surrogate import staircase

# In the interpreter a step costs milliseconds, so shapes beyond a tile of 16 steps and a block of 32 channels are rare.
SMALL = [(2, 1, 1), (1, 7, 5), (1, 17, 3), (1, 2, 33)]
LARGE = [(3, 100, 33), (3, 257, 130), (2, 1024, 64)]


@pytest.fixture
def form():
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its membrane")
    module = importlib.import_module("asnn_goose.kernels.membrane_triton")
    return module.fire_triton, module.fire_backward_triton


@pytest.mark.parametrize("shape", [*SMALL, *(pytest.param(shape, marks=pytest.mark.gpu) for shape in LARGE)])
def test_spikes_membranes_and_every_gradient_equal_the_reference(shape, form, kernel_device, assert_membrane_law):
    assert_membrane_law(*form, shape, torch.float32, kernel_device)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_equal_to_the_reference_without_sign_under_a_mask_and_through_the_reset(
    signed, detach, masked, form, kernel_device, assert_membrane_law
):
    assert_membrane_law(*form, (2, 18, 3), torch.float32, kernel_device, signed=signed, detach=detach, masked=masked)


@pytest.mark.parametrize("shape", [(2, 18, 3), pytest.param((3, 257, 130), marks=pytest.mark.gpu)])
def test_every_bit_of_the_forward_is_that_of_the_loop_in_torch(shape, form, kernel_device, membrane_inputs, some_steps):
    z, start = (part.to(kernel_device, torch.float32) for part in membrane_inputs(shape)[:2])
    valid = some_steps(shape).to(kernel_device)
    found = form[0](z, start, valid, 0.9, 1, True)
    expected = membrane_reference(z, start, valid, 0.9, lambda potential: staircase(potential, 1))
    assert all(torch.equal(part, truth) for part, truth in zip(found, expected, strict=True))


def test_strided_inputs_give_the_same_bits(form, kernel_device, membrane_inputs):
    z, start, arriving, of_last = (part.to(kernel_device, torch.float32) for part in membrane_inputs((2, 3, 5)))
    turned = [part.transpose(0, -1).contiguous().transpose(0, -1) for part in (z, start, arriving, of_last)]
    for found, expected in (
        (form[0](*turned[:2], None, 0.9, 1, True), form[0](z, start, None, 0.9, 1, True)),
        (form[1](turned[0], *turned[2:], None, 0.9, False), form[1](z, arriving, of_last, None, 0.9, False)),
    ):
        assert all(torch.equal(part, truth) for part, truth in zip(found, expected, strict=True))


@pytest.mark.parametrize("signed", [False, True])
def test_what_is_not_a_number_stays_so_for_the_guards_to_see(signed, form, kernel_device):
    z, start = torch.full((1, 2, 3), torch.nan, device=kernel_device), torch.zeros(1, 3, device=kernel_device)
    assert all(part.isnan().all() for part in form[0](z, start, None, 0.9, 1, signed))


def test_other_dtypes_are_refused(form, kernel_device, membrane_inputs):
    z, start, arriving, of_last = (part.to(kernel_device) for part in membrane_inputs((1, 2, 3)))
    with pytest.raises(ValueError, match=r"takes float32 tensors, got torch\.float64: use the torch form"):
        form[0](z, start, None, 0.9, 1, True)
    with pytest.raises(ValueError, match=r"takes float32 tensors, got torch\.float64: use the torch form"):
        form[1](z, arriving, of_last, None, 0.9, True)


def test_a_machine_without_triton_is_told_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("membrane_triton", "membrane_triton_kernels", "scan_triton_kernels"):
        monkeypatch.delitem(sys.modules, f"asnn_goose.kernels.{name}", raising=False)
    with pytest.raises(MachineError, match="needs triton"):
        importlib.import_module("asnn_goose.kernels.membrane_triton")
