import itertools

import pytest
import torch
from torch import Tensor

from asnn_goose.kernels.reference import linear_scan_reference
from asnn_goose.kernels.scan_torch import linear_scan_torch

# One rounding a step, summed over at most 63 steps and two rows: float32 stays near 1e-6, float64 near 1e-15.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
SHAPES = [(2, time, width) for time, width in itertools.product((1, 7, 63), (1, 5, 67))]


def make_inputs(shape: tuple[int, int, int], dtype: torch.dtype, density: float = 1.0) -> list[Tensor]:
    """k, v with ternary values at a density (reals at -1), decay, initial state; all with gradient."""
    generator = torch.Generator().manual_seed(sum(shape))
    k, v = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    if density >= 0:
        k, v = k.sign() * (torch.rand(shape, generator=generator) < density), v.sign()
    decay = torch.rand(shape[2], generator=generator, dtype=torch.float64) * 0.98 + 0.01
    start = torch.randn(shape[0], shape[2], generator=generator, dtype=torch.float64)
    return [tensor.to(dtype).requires_grad_() for tensor in (k, v, decay, start)]


def outputs_and_gradients(scan, inputs: list[Tensor], valid: Tensor | None) -> list[Tensor]:
    outputs = scan(*inputs, valid)
    incoming = [torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out) for out in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, incoming)]


def assert_equal_to_reference(scan, inputs: list[Tensor], valid: Tensor | None) -> None:
    doubles = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = outputs_and_gradients(linear_scan_reference, doubles, valid)
    for found, truth in zip(outputs_and_gradients(scan, inputs, valid), expected, strict=True):
        scale = max(1.0, float(truth.detach().abs().max()))
        torch.testing.assert_close(found.double(), truth, rtol=0, atol=TOLERANCE[found.dtype] * scale)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_final_state_and_every_gradient_equal_the_reference(shape, dtype) -> None:
    assert_equal_to_reference(linear_scan_torch, make_inputs(shape, dtype, -1), None)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_equal_to_the_reference_at_densities_zero_and_one(density) -> None:
    assert_equal_to_reference(linear_scan_torch, make_inputs((2, 63, 67), torch.float32, density), None)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equal_to_the_reference_under_a_mask(dtype) -> None:
    valid = torch.rand(2, 63, generator=torch.Generator().manual_seed(0)) < 0.5
    assert_equal_to_reference(linear_scan_torch, make_inputs((2, 63, 5), dtype, -1), valid)


def test_masked_steps_get_no_gradient_even_where_inputs_are_not_finite() -> None:
    k, v, decay, start = make_inputs((2, 7, 5), torch.float32)
    valid = torch.tensor([[False, True, True, False, True, True, False]] * 2)
    k = k.detach().masked_fill(~valid[:, :, None], torch.nan).requires_grad_()
    results = outputs_and_gradients(linear_scan_torch, [k, v, decay, start], valid)
    assert all(result.isfinite().all() for result in results)
    assert results[2][~valid].abs().sum() == results[3][~valid].abs().sum() == 0


def test_an_all_masked_row_returns_its_initial_state() -> None:
    inputs = make_inputs((2, 7, 5), torch.float32)
    _, final = linear_scan_torch(*inputs, torch.zeros(2, 7, dtype=torch.bool))
    assert torch.equal(final, inputs[3])


def test_strided_inputs_give_the_same_bits() -> None:
    k, v, decay, start = (tensor.detach() for tensor in make_inputs((2, 7, 5), torch.float32, -1))
    strided = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (k, v)]
    assert torch.equal(
        linear_scan_torch(*strided, decay, start, None)[0], linear_scan_torch(k, v, decay, start, None)[0]
    )
