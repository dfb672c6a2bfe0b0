import importlib

import pytest
import torch

# Three tf32 products of 21 bits a step, through an inverse whose entries stay below 1.
TOLERANCE = 5e-6


@pytest.mark.parametrize(("chunk", "levels"), [(16, 4), (32, 5), (64, 6)])
def test_what_a_chunk_gives_alone_is_exact_even_where_one_key_repeats(chunk, levels, kernel_device):
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its delta rule")
    kernels = importlib.import_module("asnn_goose.kernels.delta_triton_kernels")
    generator = torch.Generator().manual_seed(0)
    key = torch.full((1, chunk, 1, 16), 0.25)
    value = torch.rand(1, chunk, 1, 16, generator=generator)
    erase = torch.rand(1, chunk, 1, generator=generator)
    log_decay, ones = torch.full((1, chunk, 1), -1 / chunk), torch.ones(1, chunk, 1)
    found = torch.empty(chunk, chunk), torch.empty(16, 16), torch.empty(16, 16), torch.empty(1)
    tensors = [part.to(kernel_device) for part in (key, value, log_decay, erase, ones, *found)]
    strides = (*key.stride()[:3], *value.stride()[:3])
    kernels.solve_kernel[(1, 1)](
        *tensors,
        *strides,
        chunk,
        1,
        width=16,
        value_width=16,
        chunk=chunk,
        turned=False,
        levels=levels,
        inverse="tf32x3",
    )
    expected = solved(key[0, :, 0].double(), value[0, :, 0].double(), erase.flatten().double())
    for name, result, value in zip(("T", "E", "D", "kept"), tensors[-4:], expected, strict=True):
        assert (result.cpu().double() - value).abs().max() < TOLERANCE, name


def solved(key, value, erase):
    """T, E, D and the decay over a chunk that in all decays by 1 in logarithms and writes at rate 1, in float64."""
    chunk = len(key)
    passed = -torch.arange(1, chunk + 1).double() / chunk
    before = passed + 1 / chunk
    between = (before[:, None] - passed).exp().tril(-1)
    inverse = torch.linalg.inv(torch.eye(chunk).double() + erase[:, None] * between * (key @ key.T))
    kept = (passed[-1] - passed).exp()[:, None] * key
    bound = inverse @ ((erase * before.exp())[:, None] * key)
    return inverse, -kept.T @ bound, (inverse @ value).T @ kept, passed[-1:].exp()
