import importlib

import pytest
import torch

# Three tf32 products of 21 bits a step, through an inverse whose entries stay below 1.
TOLERANCE = 5e-6


@pytest.mark.parametrize(("chunk", "levels"), [(16, 4), (32, 5), (64, 6)])
def test_the_solved_matrix_is_the_inverse_even_where_one_key_repeats_without_decay(chunk, levels, kernel_device):
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its delta rule")
    kernels = importlib.import_module("asnn_goose.kernels.delta_triton_kernels")
    generator = torch.Generator().manual_seed(0)
    key = torch.full((1, chunk, 1, 16), 0.25)
    value = torch.rand(1, chunk, 1, 16, generator=generator)
    erase = torch.rand(1, chunk, 1, generator=generator)
    still, ones = torch.zeros(1, chunk, 1), torch.ones(1, chunk, 1)
    solved, by_state, new = torch.empty(chunk, chunk), torch.empty(chunk, 16), torch.empty(chunk, 16)
    tensors = [part.to(kernel_device) for part in (key, value, still, erase, ones, solved, by_state, new)]
    strides = (*key.stride()[:3], *value.stride()[:3])
    kernels.solve_kernel[(1, 1)](
        *tensors, *strides, chunk, 1, width=16, value_width=16, chunk=chunk, levels=levels, inverse="tf32x3",
        precision="tf32x3",
    )  # fmt: skip
    rates = erase.flatten().double()
    expected = torch.linalg.inv(torch.eye(chunk).double() + rates[:, None] * torch.ones(chunk, chunk).double().tril(-1))
    outputs = {
        "solved": expected,
        "by_state": expected @ (rates[:, None] * 0.25),
        "new": expected @ value[0, :, 0].double(),
    }
    for name, found in zip(outputs, tensors[-3:], strict=True):
        assert (found.cpu().double() - outputs[name]).abs().max() < TOLERANCE, name
