import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from asnn_goose.kernels.reference import linear_scan_reference

pytest.importorskip("numba", reason="install the cpu extra to test the numba scan")
from asnn_goose.kernels.scan_numba import linear_scan_numba

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
    assert_equal_to_reference(linear_scan_numba, make_inputs(shape, dtype, -1), None)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_equal_to_the_reference_at_densities_zero_and_one(density) -> None:
    assert_equal_to_reference(linear_scan_numba, make_inputs((2, 63, 67), torch.float32, density), None)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equal_to_the_reference_under_a_mask(dtype) -> None:
    valid = torch.rand(2, 63, generator=torch.Generator().manual_seed(0)) < 0.5
    assert_equal_to_reference(linear_scan_numba, make_inputs((2, 63, 5), dtype, -1), valid)


def test_masked_steps_get_no_gradient_even_where_inputs_are_not_finite() -> None:
    k, v, decay, start = make_inputs((2, 7, 5), torch.float32)
    valid = torch.tensor([[False, True, True, False, True, True, False]] * 2)
    k = k.detach().masked_fill(~valid[:, :, None], torch.nan).requires_grad_()
    results = outputs_and_gradients(linear_scan_numba, [k, v, decay, start], valid)
    assert all(result.isfinite().all() for result in results)
    assert results[2][~valid].abs().sum() == results[3][~valid].abs().sum() == 0


def test_an_all_masked_row_returns_its_initial_state() -> None:
    inputs = make_inputs((2, 7, 5), torch.float32)
    _, final = linear_scan_numba(*inputs, torch.zeros(2, 7, dtype=torch.bool))
    assert torch.equal(final, inputs[3])


def test_strided_inputs_give_the_same_bits() -> None:
    k, v, decay, start = (tensor.detach() for tensor in make_inputs((2, 7, 5), torch.float32, -1))
    strided = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (k, v)]
    assert torch.equal(
        linear_scan_numba(*strided, decay, start, None)[0], linear_scan_numba(k, v, decay, start, None)[0]
    )


@pytest.mark.parametrize("shape", [(1, 7, 5), (3, 63, 67), (2, 9, 1000)])
def test_every_bit_is_the_same_for_one_thread_and_for_two(shape) -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(linear_scan_numba, make_inputs(shape, torch.float32, -1), None))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_channels_of_different_blocks_equal_the_reference() -> None:
    assert_equal_to_reference(linear_scan_numba, make_inputs((2, 7, 900), torch.float64, -1), None)


def test_torch_keeps_its_number_of_threads_when_numba_starts_its_own():
    code = (
        "import torch\n"
        "from asnn_goose.kernels.scan_numba import linear_scan_numba\n"
        "x = torch.ones(2, 3, 4)\n"
        "linear_scan_numba(x, x, torch.ones(4), torch.zeros(2, 4), None)\n"
        "print(torch.get_num_threads())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert outcome.stdout.strip() == "1"
