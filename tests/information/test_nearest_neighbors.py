from collections.abc import Callable
from math import log

import pytest
import torch

from asnn_goose.information import nearest_neighbors
from asnn_goose.information.nearest_neighbors import nearest_neighbor_bits


def test_information_of_overlapping_uniform_classes_is_found() -> None:
    # Classes on [0, 2] and [1, 3]: a value tells the class for certain half of the time, and nothing otherwise.
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (2000, 1), generator=generator)
    values = 2 * torch.rand(2000, 1, generator=generator, dtype=torch.float64) + labels
    assert float(nearest_neighbor_bits(labels, values, 3)) == pytest.approx(0.5, abs=0.06)


def test_signs_of_a_gaussian_are_known_as_far_as_its_copy_tells(
    gaussians: Callable[[int, float], tuple[torch.Tensor, torch.Tensor]],
) -> None:
    x, y = gaussians(2000, 0.8)
    # I(sign x; y) = 1 - E h2(Phi(r y / sqrt(1 - r^2))), by integration over y.
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    chance = torch.special.ndtr(0.8 * grid / 0.6).clamp(1e-300, 1 - 1e-16)
    uncertain = torch.special.entr(chance) + torch.special.entr(1 - chance)
    density = (-grid.square() / 2).exp() / (2 * torch.pi) ** 0.5
    truth = 1 - float(torch.trapezoid(density * uncertain, grid)) / log(2)
    assert float(nearest_neighbor_bits((x > 0).long(), y, 3)) == pytest.approx(truth, abs=0.06)


def test_five_points_by_hand() -> None:
    labels, values = torch.tensor([[0], [0], [1], [1], [0]]), torch.tensor([[0.0], [1.0], [3.0], [4.5], [2.5]])
    # k = 1. Others in the ball that reaches the next of the same class: 1, 1, 2, 1, 2 (from left to right in the list).
    psi = [float(torch.digamma(torch.tensor(float(n), dtype=torch.float64))) for n in range(1, 6)]
    mean_class, mean_ball = (3 * psi[2] + 2 * psi[1]) / 5, (3 * psi[0] + 2 * psi[1]) / 5
    by_hand = (psi[4] + psi[0] - mean_class - mean_ball) / log(2)
    assert float(nearest_neighbor_bits(labels, values, 1)) == pytest.approx(by_hand, abs=1e-12)


def test_independent_labels_know_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 2, (1000, 4), generator=generator)
    found = nearest_neighbor_bits(labels, torch.randn(1000, 3, generator=generator))
    assert found.shape == (4,)
    assert float(found.abs().max()) < 0.08


def test_equal_values_know_nothing() -> None:
    labels = torch.arange(60).remainder(3).unsqueeze(1)
    assert abs(float(nearest_neighbor_bits(labels, torch.zeros(60, 2)))) < 0.1


def test_a_silent_channel_knows_nothing() -> None:
    values = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert float(nearest_neighbor_bits(torch.zeros(50, 1, dtype=torch.int64), values)) == pytest.approx(0.0, abs=1e-12)


def test_small_classes_are_left_out_of_their_channel_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, values = torch.randint(2, (60, 1), generator=generator), torch.randn(60, 2, generator=generator)
    rare = torch.cat([labels, torch.full((3, 1), 7)])
    both = torch.cat([rare, torch.cat([labels, torch.zeros(3, 1, dtype=torch.int64)])], dim=1)
    more = torch.cat([values, torch.zeros(3, 2)])
    found = nearest_neighbor_bits(both, more, 3)
    assert float(found[0]) == pytest.approx(float(nearest_neighbor_bits(labels, values, 3)), abs=1e-12)
    assert float(found[1]) == pytest.approx(float(nearest_neighbor_bits(both[:, 1:], more, 3)), abs=1e-12)


@pytest.mark.parametrize(("nearest", "far_balls"), [(1, 7), (4, 1000), (20, 1), (299, 10)])
@pytest.mark.parametrize("equal", [False, True])
def test_how_far_is_looked_first_changes_nothing(
    nearest: int, far_balls: int, equal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    # One class of the last channel is rare, so that its balls are wide.
    labels = (torch.rand(300, 3, generator=generator) < torch.tensor([0.5, 0.2, 0.02])).long()
    values = torch.randn(300, 2, generator=generator)
    values = values.round() if equal else values
    monkeypatch.setattr(nearest_neighbors, "NEAREST", 300)
    expected = nearest_neighbor_bits(labels, values)
    monkeypatch.setattr(nearest_neighbors, "NEAREST", nearest)
    monkeypatch.setattr(nearest_neighbors, "FAR_BALLS", far_balls)
    torch.testing.assert_close(nearest_neighbor_bits(labels, values), expected, rtol=1e-12, atol=1e-12)


def test_channels_are_told_of_as_each_alone_is() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, values = torch.randint(3, (100, 4), generator=generator), torch.randn(100, 2, generator=generator)
    alone = torch.cat([nearest_neighbor_bits(labels[:, [channel]], values) for channel in range(4)])
    torch.testing.assert_close(nearest_neighbor_bits(labels, values), alone, rtol=1e-12, atol=1e-12)


def test_neither_scale_nor_order_nor_names_of_labels_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, values = torch.randint(3, (300, 1), generator=generator), torch.randn(300, 2, generator=generator)
    found, order = nearest_neighbor_bits(labels, values), torch.randperm(300, generator=generator)
    other = nearest_neighbor_bits(5 - 2 * labels[order], 8 * values[order])
    assert float(other) == pytest.approx(float(found), abs=1e-9)


def test_too_few_tokens_and_neighbors_are_refused() -> None:
    labels, values = torch.tensor([[0], [0], [0], [1]]), torch.arange(4.0).unsqueeze(1)
    with pytest.raises(ValueError, match="no class of some channel has more than 3 of the 4 tokens"):
        nearest_neighbor_bits(labels, values, 3)
    with pytest.raises(ValueError, match="neighbors must be at least 1, got 0"):
        nearest_neighbor_bits(labels, values, 0)
