import pytest
import torch

pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its spike encoder")
from asnn_goose.kernels.encoder_triton_kernels import encode_backward_kernel, encode_kernel

TOKENS, WIDTH, GUARD = 3, 5, -77.0
# Two tiles, the last with a token too many, of channels too many.
TILE = {"width": WIDTH, "rows": 2, "block": 8, "num_warps": 1}


def guarded(count, device):
    """Room for so many numbers, and behind it a band that nothing may write to."""
    return torch.full((count + 64,), GUARD, device=device)


@pytest.mark.parametrize("levels", [1, 8])
def test_nothing_is_written_behind_the_last_token(levels, kernel_device):
    x, weight = torch.ones(TOKENS, WIDTH, device=kernel_device), torch.ones(WIDTH, device=kernel_device)
    sizes = {"values": TOKENS * WIDTH, "steps": TOKENS, "moments": 2 * TOKENS}
    found = {name: guarded(size, kernel_device) for name, size in sizes.items()}
    encode_kernel[(2,)](
        x, weight, weight, *found.values(), TOKENS, WIDTH, 1e-5, 1.0, 0.01, 10.0,
        norm="layer", levels=levels, compared=4, whole=False, **TILE,
    )  # fmt: skip
    for name, size in sizes.items():
        assert (found[name][size:] == GUARD).all()
        assert (found[name][:size] != GUARD).all()


@pytest.mark.parametrize("programs", [1, 2])
def test_no_gradient_is_written_behind_the_last_token_or_program(programs, kernel_device):
    x, weight = torch.ones(TOKENS, WIDTH, device=kernel_device), torch.ones(WIDTH, device=kernel_device)
    steps, moments = torch.ones(TOKENS, device=kernel_device), torch.ones(2 * TOKENS, device=kernel_device)
    sizes = {"gradient": TOKENS * WIDTH, "partial": programs * 2 * WIDTH}
    found = {name: guarded(size, kernel_device) for name, size in sizes.items()}
    encode_backward_kernel[(programs,)](
        x, weight, weight, steps, moments, x, *found.values(), TOKENS, WIDTH, WIDTH, 1.5, 1.0, norm="layer", **TILE
    )
    for name, size in sizes.items():
        assert (found[name][size:] == GUARD).all()
        assert (found[name][:size] != GUARD).all()
    assert found["partial"][: programs * 2 * WIDTH].view(programs, 2, WIDTH)[:, 1].sum() == TOKENS * WIDTH
