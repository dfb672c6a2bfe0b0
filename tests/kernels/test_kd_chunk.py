import math

import pytest
import torch

from asnn_goose.kernels.kd_chunk import ChunkPlan, allocate_buffers, chunk_sums, token_losses

# A handful of float64 operations on numbers of order one.
FLOAT64_TOLERANCE = 1e-14


def make_plan(temperature: float, kl_weight: float, cross_entropy_weight: float) -> ChunkPlan:
    """One valid token whose label is word 1 of 2."""
    one = torch.ones(1, 1, dtype=torch.bool)
    return ChunkPlan(temperature, 1, None, torch.tensor([[1]]), one, one, kl_weight, cross_entropy_weight, True)


def sums_of_two_words(plan: ChunkPlan) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Student logits (0, log 3), teacher logits (0, 0)."""
    buffers = allocate_buffers(torch.zeros(1, 3, dtype=torch.float64), 2, torch.float64, True, True, plan)
    buffers.student.copy_(torch.tensor([[0.0, math.log(3)]], dtype=torch.float64))
    buffers.teacher.zero_()
    return chunk_sums(buffers, slice(0, 1), plan, True)


def test_two_words_at_temperature_one_by_hand() -> None:
    kl, cross_entropy, gradient = sums_of_two_words(make_plan(1.0, 1.0, 2.0))
    assert kl.item() == pytest.approx(0.5 * math.log(4 / 3), rel=FLOAT64_TOLERANCE)
    assert cross_entropy.item() == pytest.approx(math.log(4 / 3), rel=FLOAT64_TOLERANCE)
    assert gradient[0].tolist() == pytest.approx([-0.25 + 0.5, 0.25 - 0.5], rel=FLOAT64_TOLERANCE)


def test_two_words_at_temperature_two_by_hand() -> None:
    kl, cross_entropy, gradient = sums_of_two_words(make_plan(2.0, 1.0, 1.0))
    first = 1 / (1 + math.sqrt(3))
    expected_kl = -0.5 * math.log(4 * first * (1 - first))
    assert kl.item() == pytest.approx(expected_kl, rel=FLOAT64_TOLERANCE * 10)
    assert cross_entropy.item() == pytest.approx(math.log(4 / 3), rel=FLOAT64_TOLERANCE)
    slope = 2 * (first - 0.5) + 0.25
    assert gradient[0].tolist() == pytest.approx([slope, -slope], rel=FLOAT64_TOLERANCE * 10)


def test_a_token_without_label_loses_nothing() -> None:
    log_softmax = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    losses = token_losses(log_softmax, torch.tensor([[1], [0]]), torch.tensor([[True], [False]]))
    assert losses.flatten().tolist() == [2.0, 0.0]
