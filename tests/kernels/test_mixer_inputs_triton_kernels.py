import importlib
import math

import pytest
import torch

pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test a mixer's inputs")
kernels = importlib.import_module("asnn_goose.kernels.mixer_inputs_triton_kernels")
UNTOUCHED = 7.0


def encode(x, levels, compared, device):
    """Spikes and values of tokens of two heads of 16, with thresholds of their mean magnitude."""
    tokens, width = x.shape
    spikes = torch.full((tokens + 1, width), int(UNTOUCHED), dtype=torch.int8, device=device)
    made = torch.full((tokens + 1, width), UNTOUCHED, device=device)
    ones = torch.ones(1, width, device=device)
    kernels.site_kernel[(1, 1, 1)](
        x.to(device), ones, ones, None, None, None, made, spikes, None, tokens, width, 0, width, 1.0, 0.01, 10.0,
        start=0, heads=2, half=8, span=2, turns=1, tokens=8, count=1, turned=False, bounded=False,
        levels=levels, compared=compared, scaled=False, rest_width=0, rest_block=1,
    )  # fmt: skip
    return spikes.cpu(), made.cpu()


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_counted_edges_are_the_rounded_quotient(levels, kernel_device):
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)) * 2
    counted, divided = encode(x, levels, 4, kernel_device), encode(x, levels, 0, kernel_device)
    assert all(torch.equal(one, other) for one, other in zip(counted, divided, strict=True))
    step = 2 * x.abs().mean(-1, keepdim=True)
    assert torch.equal(counted[1][:5], x.sign() * (x.abs() / step + 0.5).floor().clamp_max(levels))


def test_a_tile_that_reaches_past_the_last_token_writes_nothing_there(kernel_device):
    spikes, made = encode(torch.ones(3, 32), 1, 4, kernel_device)
    assert (made[3] == UNTOUCHED).all()
    assert (spikes[3] == UNTOUCHED).all()


@pytest.mark.parametrize(("first", "expected"), [(math.nan, math.nan), (0.0, 1.0)])
def test_one_number_that_is_none_makes_its_whole_token_none(first, expected, kernel_device):
    x = torch.full((2, 32), 3.0)
    x[0, 0] = first
    spikes, made = encode(x, 1, 4, kernel_device)
    assert torch.equal(made[0, 1:].isnan(), torch.full((31,), math.isnan(expected)))
    assert (made[1] == 1).all()
    assert (spikes[0, 1:] == (0 if math.isnan(expected) else 1)).all()
