import math

import pytest
import torch

from asnn_goose.evaluation.agreement import Agreement, agreement, log_probabilities
from asnn_goose.kernels.head_chunks import LinearHead

IDENTITY = LinearHead(torch.eye(2, dtype=torch.float64), None)


def states(*odds: float) -> torch.Tensor:
    """Hidden states that the identity turns into logits of two words with these probabilities of the first."""
    return torch.tensor([[math.log(p), math.log(1 - p)] for p in odds], dtype=torch.float64)


def test_a_model_agrees_with_itself() -> None:
    hidden = states(0.9, 0.2, 0.6)
    assert agreement(hidden, IDENTITY, hidden, IDENTITY) == Agreement(1.0, 0.0)


def test_divergence_is_from_the_teacher_and_by_hand() -> None:
    found = agreement(states(0.5, 0.25), IDENTITY, states(0.75, 0.25), IDENTITY)
    by_hand = 0.5 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert found.kl_nats == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 7])
def test_chunks_change_nothing(chunk_tokens: int) -> None:
    student, teacher = states(0.9, 0.2, 0.6, 0.4), states(0.8, 0.7, 0.1, 0.3)
    found = agreement(student, IDENTITY, teacher, IDENTITY, chunk_tokens)
    assert found.top1_agreement == 0.5
    assert found.kl_nats == pytest.approx(agreement(student, IDENTITY, teacher, IDENTITY).kl_nats, rel=1e-12)


def test_widths_types_and_biases_of_the_heads_may_differ() -> None:
    wide = LinearHead(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], dtype=torch.bfloat16), torch.tensor([0.0, 100.0]))
    narrow = LinearHead(torch.eye(2), None)
    found = agreement(torch.tensor([[0.0, 1.0]]), narrow, torch.zeros(1, 3), wide)
    assert found.top1_agreement == 1.0
    assert found.kl_nats == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-5)


def test_softmax_of_half_precision_states_is_float32() -> None:
    head = LinearHead(torch.eye(2, dtype=torch.bfloat16), None)
    found = log_probabilities(torch.tensor([[3.0, 0.0]], dtype=torch.bfloat16), head)
    assert found.dtype == torch.float32
    assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-6)
