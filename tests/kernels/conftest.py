"""The laws of a membrane, for each form of its two kernels."""

from collections.abc import Callable

import pytest
import torch

from asnn_goose.kernels.reference import membrane_reference
from asnn_goose.spikes.encoder import _Staircase
from asnn_goose.spikes.surrogate import SurrogateSpec, surrogate_derivative

BETA, LEVELS = 0.9, 2
SURROGATE = SurrogateSpec("triangle", 0.7)
# Three roundings a step, which a leak of 0.9 lets add up over about ten, relative to the largest entry.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture
def membrane_inputs() -> Callable[..., list[torch.Tensor]]:
    """Activations, a first membrane, and gradients of spikes and last membrane: float64 that float32 holds exactly."""

    def make(shape: tuple[int, int, int]) -> list[torch.Tensor]:
        generator, once = torch.Generator().manual_seed(sum(shape)), (shape[0], shape[2])
        return [torch.randn(size, generator=generator).double() for size in (shape, once, shape, once)]

    return make


@pytest.fixture
def some_steps() -> Callable[..., torch.Tensor]:
    """A mask of six steps in ten, none in the first row's second half."""

    def make(shape: tuple[int, int, int]) -> torch.Tensor:
        valid = torch.rand(shape[:2], generator=torch.Generator().manual_seed(5)) < 0.6
        valid[0, shape[1] // 2 :] = False
        return valid

    return make


@pytest.fixture
def assert_membrane_law(membrane_inputs, some_steps) -> Callable[..., None]:
    """Asserts that a form's spikes are the float64 loop's, and potentials, last membrane and gradients near its own."""

    def check(forward, backward, shape, dtype, device="cpu", signed=True, detach=True, masked=False):
        *leaves, arriving, of_last = membrane_inputs(shape)
        leaves, valid = [leaf.requires_grad_() for leaf in leaves], some_steps(shape) if masked else None
        expected = membrane_reference(
            *leaves, valid, BETA, lambda u: _Staircase.apply(u, LEVELS, SURROGATE, signed), detach
        )
        gradients = torch.autograd.grad((expected[0] * arriving).sum() + (expected[2] * of_last).sum(), leaves)
        z, start, arriving, of_last = (
            part.detach().to(device, dtype) for part in (*leaves, arriving, of_last)
        )  # fmt: skip
        valid = None if valid is None else valid.to(device)
        found = forward(z, start, valid, BETA, LEVELS, signed)
        slopes = surrogate_derivative(found[1], LEVELS, SURROGATE, signed)
        assert torch.equal(found[0].cpu().double(), expected[0])
        found += backward(slopes, arriving, of_last, valid, BETA, detach)
        for part, truth in zip(found, (*expected, *gradients), strict=True):
            assert part.dtype == dtype
            scale = max(1.0, float(truth.detach().abs().max()))
            torch.testing.assert_close(part.cpu().double(), truth, rtol=0, atol=TOLERANCE[dtype] * scale)

    return check
