import importlib

import pytest
import torch
from torch.nn import functional

# float32 computes as torch does; half types round once where torch rounds twice.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture
def swiglu():
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its swiglu")
    return importlib.import_module("asnn_goose.kernels.swiglu_triton").swiglu_triton


def made(shape, dtype, device):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).to(device)


def off(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "width"), [((3, 5, 14), 7), ((1, 600), 300), ((9, 32), 11)])
def test_values_and_gradients_are_those_of_torch_in_float64(swiglu, shape, width, dtype, kernel_device):
    both = made(shape, dtype, kernel_device).requires_grad_()
    exact = both.detach().double().requires_grad_()
    expected = functional.silu(exact[..., :width]) * exact[..., width : 2 * width]
    found = swiglu(both, width)
    incoming = made((*shape[:-1], width), dtype, kernel_device)
    found.backward(incoming)
    expected.backward(incoming.double())
    assert found.dtype == both.grad.dtype == dtype
    assert off(found.detach(), expected.detach()) < TOLERANCE[dtype]
    assert off(both.grad, exact.grad) < TOLERANCE[dtype]
    assert not both.grad[..., 2 * width :].any()


def test_rows_that_are_not_dense_are_read_as_they_are(swiglu, kernel_device):
    wide = made((4, 3, 40), torch.float32, kernel_device)
    assert torch.equal(swiglu(wide[..., 5:25], 10), swiglu(wide[..., 5:25].contiguous(), 10))


def test_no_tokens_give_no_values(swiglu, kernel_device):
    assert swiglu(torch.zeros(0, 8, device=kernel_device), 4).shape == (0, 4)


def test_what_the_kernel_is_not_written_for_is_refused(swiglu):
    with pytest.raises(ValueError, match="width 5 needs 10 columns, gate then up, got 8"):
        swiglu(torch.zeros(2, 8), 5)
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        swiglu(torch.zeros(2, 8, dtype=torch.float64), 4)


def test_the_operator_is_registered_as_torch_wants_it(swiglu, kernel_device):
    rows = made((3, 12), torch.float32, kernel_device).requires_grad_()
    torch.library.opcheck(torch.ops.asnn_goose.swiglu.default, (rows, 6))


@pytest.mark.gpu
def test_a_large_batch_is_right_in_bfloat16(swiglu):
    both = made((2048, 3072), torch.bfloat16, "cuda")
    exact = both.double()
    expected = functional.silu(exact[:, :1536]) * exact[:, 1536:]
    assert off(swiglu(both, 1536), expected) < TOLERANCE[torch.bfloat16]
