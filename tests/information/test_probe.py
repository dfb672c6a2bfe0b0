from collections.abc import Callable
from math import log2

import pytest
import torch

from asnn_goose.information.bins import equal_mass_borders
from asnn_goose.information.probe import Decoder, HeldOutBound, RidgeMoments, bin_probabilities, lower_inverse

Gaussians = Callable[[int, float], tuple[torch.Tensor, torch.Tensor]]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solved(inputs: torch.Tensor, targets: torch.Tensor, ridge: float = 1e-3) -> Decoder:
    moments = RidgeMoments(inputs.shape[-1], targets.shape[-1])
    moments.add(inputs, targets)
    return moments.solve(ridge)


def bound(inputs: torch.Tensor, targets: torch.Tensor, training: int, bins: int) -> torch.Tensor:
    decoder = solved(inputs[:training], targets[:training])
    held_out = HeldOutBound(decoder, equal_mass_borders(targets[:training], bins))
    held_out.add(inputs[training:], targets[training:])
    return held_out.bits()


def test_a_probe_proves_most_of_what_gaussians_know(gaussians: Gaussians) -> None:
    x, y = gaussians(60_000, 0.8)
    truth = -0.5 * log2(1 - 0.8**2)
    coarse, fine = (float(bound(x, y, 30_000, bins)) for bins in (4, 32))
    assert coarse < fine < truth
    assert fine > truth - 0.05


def test_independent_inputs_prove_nothing() -> None:
    # 50 useless channels on 400 tokens: without the correction of the deviation the bound would be far below 0.
    found = bound(normal(4000, 50), normal(4000, 3, seed=1), 400, 8)
    assert found.shape == (3,)
    assert float(found.max()) < 0.01
    assert float(found.min()) > -0.15


def test_a_copy_proves_the_whole_entropy() -> None:
    x = normal(4000, 2)
    found = bound(x, x, 2000, 4)
    assert found.tolist() == pytest.approx([2.0, 2.0], abs=0.02)
    held_out = HeldOutBound(solved(x, x), equal_mass_borders(x, 4))
    held_out.add(x, x)
    assert held_out.entropy_bits().tolist() == pytest.approx([2.0, 2.0], abs=1e-12)


def test_spikes_prove_what_signs_tell() -> None:
    # The sign of a target is one bit of it: no bound may exceed that, whatever the bins.
    target = normal(8000, 1)
    found = float(bound(target.sign().to(torch.int8), target.float(), 4000, 8))
    assert 0.5 < found < 1.0


def test_weights_are_those_of_ridge_regression_on_centered_tokens() -> None:
    x, y = normal(50, 4) + 3, normal(50, 2, seed=1) - 2
    decoder = solved(x, y, ridge=0.1)
    xc, yc = x - x.mean(dim=0), y - y.mean(dim=0)
    penalty = 0.1 * xc.square().mean() * 50
    stacked = torch.cat([xc, penalty.sqrt() * torch.eye(4, dtype=torch.float64)])
    padded = torch.cat([yc, torch.zeros(4, 2, dtype=torch.float64)])
    expected = torch.linalg.lstsq(stacked, padded).solution
    torch.testing.assert_close(decoder.weights, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(decoder.predict(x.mean(dim=0, keepdim=True))[0], y.mean(dim=0), rtol=1e-9, atol=1e-9)


def test_the_deviation_is_that_of_tokens_not_seen() -> None:
    weights = normal(40, 1, seed=5)
    x, noise = normal(5200, 40), normal(5200, 1, seed=1)
    y = x @ weights + noise
    decoder = solved(x[:200], y[:200])
    error = float((decoder.predict(x[200:]) - y[200:]).std())
    assert error > 1.08
    assert float(decoder.deviation) == pytest.approx(error, rel=0.12)


def test_batches_change_nothing() -> None:
    x, y = normal(60, 4), normal(60, 2, seed=1)
    moments, borders = RidgeMoments(4, 2), equal_mass_borders(y, 4)
    for some, other in zip(x.split([1, 40, 19]), y.split([1, 40, 19]), strict=True):
        moments.add(some, other)
    one, other = solved(x, y), moments.solve()
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.deviation, other.deviation, rtol=1e-10, atol=1e-12)
    whole, parts = HeldOutBound(one, borders), HeldOutBound(one, borders)
    whole.add(x.reshape(3, 20, 4), y.reshape(3, 20, 2))
    for rows in range(0, 60, 7):
        parts.add(x[rows : rows + 7], y[rows : rows + 7])
    torch.testing.assert_close(whole.bits(), parts.bits(), rtol=1e-12, atol=1e-12)


def test_targets_are_solved_together_as_each_alone() -> None:
    x, y = normal(60, 4), normal(60, 3, seed=1)
    together = solved(x, y)
    for target in range(3):
        alone = solved(x, y[:, target : target + 1])
        torch.testing.assert_close(together.weights[:, [target]], alone.weights, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(together.deviation[[target]], alone.deviation, rtol=1e-10, atol=1e-12)


def test_a_triangular_matrix_of_any_width_is_inverted() -> None:
    for width in (1, 128, 129, 301):
        lower = normal(width, width).tril() + width * torch.eye(width, dtype=torch.float64)
        inverse = lower_inverse(lower)
        torch.testing.assert_close(lower @ inverse, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-12)
        assert not inverse.triu(1).any()


def test_degrees_are_the_trace_of_the_ridge_projection() -> None:
    # Wide enough for the trace to be made of blocks.
    x, y = normal(400, 150) * torch.linspace(0.01, 2, 150), normal(400, 1, seed=1)
    xc, yc = x - x.mean(dim=0), y - y.mean(dim=0)
    shrunk = torch.linalg.inv(xc.T @ xc + 0.1 * xc.square().mean() * 400 * torch.eye(150).double())
    residual = yc - xc @ shrunk @ xc.T @ yc
    degrees = 1 + (xc @ shrunk @ xc.T).trace()
    expected = residual.square().mean().sqrt() / (1 - degrees / 400)
    assert float(solved(x, y, ridge=0.1).deviation) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("constant", [0.0, 0.3])
@pytest.mark.parametrize("width", [3, 200])
def test_channels_that_never_change_are_fine(constant: float, width: int) -> None:
    still, y = torch.full((2000, width), constant), normal(2000, 2)
    alone = bound(still, y, 1000, 4)
    assert float(alone.abs().max()) < 0.05
    beside = bound(torch.cat([still, y.float()], dim=1), y, 1000, 4)
    assert float(beside.min()) > 1.9


def test_a_target_that_never_changes_gives_a_finite_bound_of_at_most_0() -> None:
    found = float(bound(normal(200, 2), torch.full((200, 1), 1.5), 100, 4))
    assert -2.1 < found <= 0.0


def test_probabilities_are_areas_of_the_normal_curve_and_never_0() -> None:
    borders = torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64)
    found = bin_probabilities(torch.tensor([[0.0], [1000.0]]).double(), torch.ones(1).double(), borders)
    # The areas left of -1 and between -1 and 0, from tables.
    tail, middle = 0.15865525393, 0.34134474607
    assert found[0, 0].tolist() == pytest.approx([tail, middle, middle, tail], abs=1e-10)
    assert found[1, 0].tolist() == pytest.approx([1e-12, 1e-12, 1e-12, 1.0], rel=1e-9)
    assert float((found.sum(dim=-1) - 1).abs().max()) < 1e-14


def test_a_wrong_decoder_proves_less_than_nothing() -> None:
    y = normal(1000, 1)
    wrong = Decoder(-torch.ones(1, 1).double(), torch.zeros(1).double(), torch.full((1,), 0.1).double())
    held_out = HeldOutBound(wrong, equal_mass_borders(y, 8))
    held_out.add(y, y)
    assert float(held_out.bits()) < -1.0


def test_memory_does_not_grow_with_tokens(state_size: Callable[[object], int]) -> None:
    moments, sizes = RidgeMoments(4, 2), []
    held_out = HeldOutBound(solved(normal(50, 4), normal(50, 2)), equal_mass_borders(normal(50, 2), 4))
    for tokens in (10, 1000):
        for accumulator in (moments, held_out):
            accumulator.add(normal(tokens, 4), normal(tokens, 2))
        sizes.append(state_size(moments) + state_size(held_out))
    assert sizes[0] == sizes[1]


def test_what_cannot_be_solved_is_refused() -> None:
    moments = RidgeMoments(2, 1)
    with pytest.raises(ValueError, match="at least 3 training tokens, got 0"):
        moments.solve()
    with pytest.raises(ValueError, match="ridge must be above 0, got 0"):
        moments.solve(0.0)
    held_out = HeldOutBound(solved(normal(5, 2), normal(5, 1)), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least one count"):
        held_out.bits()
