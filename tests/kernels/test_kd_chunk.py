import math

import pytest
import torch

from asnn_goose.kernels.divergences import FORWARD_KL, Divergence
from asnn_goose.kernels.head_chunks import ChunkResult, ChunkSpace
from asnn_goose.kernels.kd_chunk import ChunkPlan, TorchRule, token_losses

# A handful of float64 operations on numbers of order one.
FLOAT64_TOLERANCE = 1e-14


def make_plan(temperature, divergence_weight, cross_entropy_weight, divergence=FORWARD_KL) -> ChunkPlan:
    """One valid token whose label is word 1 of 2."""
    one = torch.ones(1, 1, dtype=torch.bool)
    return ChunkPlan(
        temperature, divergence, torch.tensor([[1]]), one, one, divergence_weight, cross_entropy_weight, True
    )


def sums_of_two_words(plan: ChunkPlan) -> ChunkResult:
    """Student logits (0, log 3), teacher logits (0, 0)."""
    slope = isinstance(plan.temperature, torch.Tensor)
    space = ChunkSpace(1, 2, torch.device("cpu"), torch.float64, torch.float64, True, slope)
    student = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    return TorchRule(plan, space)(slice(0, 1), student, torch.zeros(1, 2, dtype=torch.float64))


def test_two_words_at_temperature_one_by_hand() -> None:
    loss, (kl, cross_entropy), gradient, _ = sums_of_two_words(make_plan(1.0, 1.0, 2.0))
    assert kl.item() == pytest.approx(0.5 * math.log(4 / 3), rel=FLOAT64_TOLERANCE)
    assert cross_entropy.item() == pytest.approx(math.log(4 / 3), rel=FLOAT64_TOLERANCE)
    assert loss.item() == pytest.approx(2.5 * math.log(4 / 3), rel=FLOAT64_TOLERANCE)
    assert gradient[0].tolist() == pytest.approx([-0.25 + 0.5, 0.25 - 0.5], rel=FLOAT64_TOLERANCE)


def test_two_words_at_temperature_two_by_hand() -> None:
    loss, (kl, cross_entropy), gradient, _ = sums_of_two_words(make_plan(2.0, 1.0, 1.0))
    first = 1 / (1 + math.sqrt(3))
    expected_kl = -0.5 * math.log(4 * first * (1 - first))
    assert kl.item() == pytest.approx(expected_kl, rel=FLOAT64_TOLERANCE * 10)
    assert cross_entropy.item() == pytest.approx(math.log(4 / 3), rel=FLOAT64_TOLERANCE)
    assert loss.item() == pytest.approx(4 * expected_kl + math.log(4 / 3), rel=FLOAT64_TOLERANCE * 10)
    slope = 2 * (first - 0.5) + 0.25
    assert gradient[0].tolist() == pytest.approx([slope, -slope], rel=FLOAT64_TOLERANCE * 10)


def test_the_total_variation_of_two_words_by_hand_at_a_temperature_that_learns() -> None:
    heat = torch.tensor(1.0, dtype=torch.float64)
    loss, (distance, _), gradient, slope = sums_of_two_words(make_plan(heat, 1.0, 0.0, Divergence("total_variation")))
    assert (loss.item(), distance.item()) == (pytest.approx(0.25), pytest.approx(0.25))
    assert gradient[0].tolist() == pytest.approx([-0.1875, 0.1875])
    # T (3^(1/T) / (1 + 3^(1/T)) - 1/2) by T, at 1.
    assert slope.item() == pytest.approx(0.25 - 0.1875 * math.log(3))


def test_a_token_without_label_loses_nothing() -> None:
    log_softmax = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    losses = token_losses(log_softmax, torch.tensor([[1], [0]]), torch.tensor([[True], [False]]))
    assert losses.flatten().tolist() == [2.0, 0.0]
