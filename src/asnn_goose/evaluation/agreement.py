"""How near a student is to its teacher on given text: the same likeliest word, and the divergence of what they say."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asnn_goose.kernels.head_chunks import LinearHead, chunks, statistics_dtype

CHUNK_TOKENS = 256


@dataclass(frozen=True)
class Agreement:
    """A student beside its teacher.

    Attributes:
        top1_agreement: Fraction of tokens after which both find the same next one likeliest.
        kl_nats: Mean KL(teacher || student) at temperature 1, in nats per token.
    """

    top1_agreement: float
    kl_nats: float


@torch.inference_mode()
def agreement(
    student_hidden: Float[Tensor, "tokens student_width"],
    student_head: LinearHead,
    teacher_hidden: Float[Tensor, "tokens teacher_width"],
    teacher_head: LinearHead,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Agreement:
    """Agreement over all given tokens; logits exist for `chunk_tokens` of them at a time, sums are kept in float64."""
    sums = torch.zeros(2, dtype=torch.float64, device=student_hidden.device)
    for rows in chunks(len(student_hidden), chunk_tokens):
        student, teacher = (
            log_probabilities(hidden[rows], head)
            for hidden, head in ((student_hidden, student_head), (teacher_hidden, teacher_head))
        )
        same = student.argmax(dim=-1) == teacher.argmax(dim=-1)
        divergence = (teacher.exp() * (teacher - student)).sum(dim=-1)
        sums += torch.stack([same.sum().double(), divergence.sum(dtype=torch.float64)])
    same_share, kl_nats = (sums / len(student_hidden)).tolist()
    return Agreement(same_share, kl_nats)


def log_probabilities(hidden: Float[Tensor, "tokens width"], head: LinearHead) -> Float[Tensor, "tokens vocabulary"]:
    """What a head makes of hidden states: products in its own number type, softmax in float32 (or float64)."""
    bias = None if head.bias is None else head.bias.to(head.weight.dtype)
    logits = nn.functional.linear(hidden.to(head.weight.dtype), head.weight, bias)
    return torch.log_softmax(logits.to(statistics_dtype(hidden, head)), dim=-1)
