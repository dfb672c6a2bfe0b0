import importlib

import pytest
import torch

# One rounding a step over at most nine steps.
TOLERANCE = 1e-6
TIME = 9


@pytest.fixture
def kernels():
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its scan")
    return importlib.import_module("asnn_goose.kernels.scan_triton_kernels")


def states(kernels, device, block, tile):
    """States and final state of one row of five channels."""
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 1, TIME, 5, generator=generator).to(device)
    decay, start = torch.rand(5, generator=generator).to(device), torch.randn(1, 5, generator=generator).to(device)
    found, final = torch.empty_like(k), torch.empty_like(start)
    kernels.scan_kernel[(-(-5 // block),)](
        k, v, decay, start, k, found, final, k.stride(0), v.stride(0), TIME, width=5, k_time=5, v_time=5,
        masked=False, block=block, tile=tile, num_warps=1,
    )  # fmt: skip
    return found, final


@pytest.mark.parametrize(
    ("block", "tile"),
    [(4, 3), pytest.param(64, 8, marks=pytest.mark.gpu), pytest.param(128, 32, marks=pytest.mark.gpu)],
)
def test_the_cut_into_blocks_and_tiles_changes_no_bit_of_a_state(kernels, kernel_device, block, tile):
    expected = states(kernels, kernel_device, 32, 16)
    for found, same in zip(states(kernels, kernel_device, block, tile), expected, strict=True):
        assert torch.equal(found, same)


@pytest.mark.parametrize("tile", [4, 16])
def test_the_gradient_of_the_last_state_fades_with_distance(kernels, kernel_device, tile):
    decay, steps = 0.75, torch.arange(TIME, dtype=torch.float64)
    past = (1 - decay ** (steps + 1)) / (1 - decay)
    one = torch.ones(1, TIME, 1, device=kernel_device)
    rate, start = torch.full((1,), decay, device=kernel_device), torch.zeros(1, 1, device=kernel_device)
    after = past.float().view(1, TIME, 1).to(kernel_device)
    found = [torch.empty_like(one), torch.empty_like(one), torch.empty_like(start), torch.empty_like(start)]
    kernels.reverse_scan_kernel[(1,)](
        one, one, rate, start, one, after, torch.zeros_like(one), torch.ones_like(start), *found, TIME, TIME, TIME,
        TIME, width=1, k_time=1, v_time=1, states_time=1, masked=False, block=32, tile=tile, num_warps=1,
    )  # fmt: skip
    reached = decay ** (TIME - 1 - steps)
    by_decay = (reached[1:] * past[:-1]).sum().view(1)
    for part, truth in zip(found, (reached, reached, by_decay, torch.tensor([decay**TIME])), strict=True):
        torch.testing.assert_close(part.flatten().cpu().double(), truth.double(), rtol=TOLERANCE, atol=0)
