from collections.abc import Callable

import pytest
import torch


@pytest.fixture
def gaussians() -> Callable[[int, float], tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of standard normal numbers of given number and correlation, [tokens, 1] each."""

    def make(tokens: int, correlation: float) -> tuple[torch.Tensor, torch.Tensor]:
        draw = torch.randn(2, tokens, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return draw[0], correlation * draw[0] + (1 - correlation**2) ** 0.5 * draw[1]

    return make


@pytest.fixture
def state_size() -> Callable[[object], int]:
    """How many numbers an accumulator holds, those of its parts included."""

    def size(held: object) -> int:
        if isinstance(held, torch.Tensor):
            return held.untyped_storage().nbytes() // held.element_size()
        if isinstance(held, tuple):
            return sum(map(size, held))
        return sum(map(size, vars(held).values())) if hasattr(held, "__dict__") else 0

    return size
