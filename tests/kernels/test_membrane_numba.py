import itertools

import pytest
import torch

from asnn_goose.errors import MachineError
from asnn_goose.kernels.reference import membrane_reference
from asnn_goose.spikes.surrogate import staircase

numba_form = pytest.importorskip("asnn_goose.kernels.membrane_numba", exc_type=MachineError)
FORM = numba_form.fire_numba, numba_form.fire_backward_numba
DTYPES = (torch.float32, torch.float64)
SHAPES = [(2, time, width) for time, width in itertools.product((1, 7, 63), (1, 5, 67))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_spikes_membranes_and_every_gradient_equal_the_reference(shape, dtype, assert_membrane_law):
    assert_membrane_law(*FORM, shape, dtype)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_equal_to_the_reference_without_sign_under_a_mask_and_through_the_reset(
    signed, detach, masked, assert_membrane_law
):
    assert_membrane_law(*FORM, (3, 29, 5), torch.float64, signed=signed, detach=detach, masked=masked)


def test_channels_of_different_blocks_equal_the_reference(assert_membrane_law):
    assert_membrane_law(*FORM, (2, 7, 900), torch.float64, masked=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_is_that_of_the_loop_in_torch(dtype, membrane_inputs, some_steps):
    shape = (3, 257, 130)
    z, start = (part.to(dtype) for part in membrane_inputs(shape)[:2])
    found = FORM[0](z, start, some_steps(shape), 0.9, 1, True)
    expected = membrane_reference(z, start, some_steps(shape), 0.9, lambda potential: staircase(potential, 1))
    assert all(torch.equal(part, truth) for part, truth in zip(found, expected, strict=True))


def test_strided_inputs_give_the_same_bits(membrane_inputs):
    z, start, arriving, of_last = membrane_inputs((2, 7, 5))
    turned = [part.transpose(0, -1).contiguous().transpose(0, -1) for part in (z, start, arriving, of_last)]
    for found, expected in (
        (FORM[0](*turned[:2], None, 0.9, 1, True), FORM[0](z, start, None, 0.9, 1, True)),
        (FORM[1](turned[0], *turned[2:], None, 0.9, False), FORM[1](z, arriving, of_last, None, 0.9, False)),
    ):
        assert all(torch.equal(part, truth) for part, truth in zip(found, expected, strict=True))


@pytest.mark.parametrize("signed", [False, True])
def test_what_is_not_a_number_stays_so_for_the_guards_to_see(signed):
    z = torch.full((1, 2, 3), torch.nan)
    assert all(part.isnan().all() for part in FORM[0](z, torch.zeros(1, 3), None, 0.9, 1, signed))
