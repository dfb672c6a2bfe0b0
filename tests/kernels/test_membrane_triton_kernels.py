import importlib

import pytest
import torch

TIME, WIDTH = 9, 5


@pytest.fixture
def kernels():
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its membrane")
    return importlib.import_module("asnn_goose.kernels.membrane_triton_kernels")


def both_ways(kernels, device, block, tile):
    """Spikes, potentials and last membrane of one row, and the gradients for slopes that are the potentials."""
    generator = torch.Generator().manual_seed(0)
    z, arriving = torch.randn(2, 1, TIME, WIDTH, generator=generator).to(device)
    start = torch.randn(1, WIDTH, generator=generator).to(device)
    values, potentials, gradient = (torch.empty_like(z) for _ in range(3))
    last, of_start = torch.empty_like(start), torch.empty_like(start)
    grid, cut = (-(-WIDTH // block),), {"width": WIDTH, "masked": False, "block": block, "tile": tile, "num_warps": 1}
    kernels.fire_kernel[grid](z, start, z, values, potentials, last, TIME, 0.9, levels=1, signed=True, **cut)
    kernels.fire_backward_kernel[grid](
        potentials, arriving, last, z, gradient, of_start, TIME, 0.9, attached=True, **cut
    )
    return values, potentials, last, gradient, of_start


@pytest.mark.parametrize(("block", "tile"), [(4, 3), pytest.param(64, 8, marks=pytest.mark.gpu)])
def test_the_cut_into_blocks_and_tiles_changes_no_bit(kernels, kernel_device, block, tile):
    expected = both_ways(kernels, kernel_device, 32, 16)
    found = both_ways(kernels, kernel_device, block, tile)
    assert all(torch.equal(part, same) for part, same in zip(found, expected, strict=True))
