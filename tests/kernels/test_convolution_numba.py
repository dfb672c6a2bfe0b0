import pytest
import torch

pytest.importorskip("numba", reason="install the cpu extra to test the numba convolution")
from asnn_goose.kernels.convolution_numba import short_convolution_numba

# Four products to a sum; the taps' gradient is a sum over 2 x 63 tokens.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def reference(x, taps, tail):
    """The sum as it is written, token by token."""
    whole = torch.cat((tail.flip(1), x), dim=1)
    earliest = len(taps) - 1
    steps = [
        sum(taps[place] * whole[:, earliest + step - place] for place in range(len(taps)))
        for step in range(x.shape[1])
    ]  # fmt: skip
    return torch.stack(steps, dim=1)


def inputs(batch, time, channels, taps, dtype):
    generator = torch.Generator().manual_seed(time)
    shapes = ((batch, time, channels), (taps, channels), (batch, taps - 1, channels))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def value_and_gradients(form, tensors):
    mixed = form(*tensors)
    weights = torch.linspace(-1, 1, mixed.numel(), dtype=torch.float64).view_as(mixed).to(mixed)
    return [mixed, *torch.autograd.grad(mixed, tensors, weights)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(2, 1, 5, 4), (2, 2, 5, 4), (1, 7, 1, 2), (2, 63, 67, 4), (2, 5, 900, 6)])
def test_values_and_every_gradient_equal_the_reference(shape, dtype):
    tensors = inputs(*shape, dtype)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = value_and_gradients(reference, doubles)
    for found, truth in zip(value_and_gradients(short_convolution_numba, tensors), expected, strict=True):
        scale = max(1.0, float(truth.detach().abs().max()))
        torch.testing.assert_close(found.double(), truth, rtol=0, atol=TOLERANCE[dtype] * scale)


def test_every_bit_is_the_same_for_one_thread_and_for_two():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(value_and_gradients(short_convolution_numba, inputs(3, 9, 1000, 4, torch.float32)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_tensors_of_any_stride_are_read_as_they_are():
    x, taps, tail = inputs(2, 9, 6, 4, torch.float64)
    strided = x.detach().mT.contiguous().mT
    assert not strided.is_contiguous()
    assert torch.equal(short_convolution_numba(strided, taps, tail), short_convolution_numba(x, taps, tail))
