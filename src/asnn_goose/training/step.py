"""One differentiable unit of distillation: the module that the loop, accelerate and every wrapper see."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asnn_goose.config import Objective
from asnn_goose.kernels.kd_loss import LinearHead, distillation_sums
from asnn_goose.models.student import GooseForCausalLM

IGNORED = -100


@dataclass(frozen=True)
class StepRecord:
    """What one micro-batch adds to a step.

    Attributes:
        loss: Differentiable sum over tokens of the weighted objective; divide by the window's valid tokens.
        kl_nats: Sum of KL(teacher || student) at the temperature, without T squared, in nats.
        cross_entropy_nats: Sum of next-token cross-entropy at temperature 1, in nats.
        kl_tokens: Tokens the KL was summed over.
        cross_entropy_tokens: Tokens the cross-entropy was summed over.
    """

    loss: Tensor
    kl_nats: Tensor
    cross_entropy_nats: Tensor
    kl_tokens: int
    cross_entropy_tokens: int


class DistillationStep(nn.Module):
    """Student and objective together; its forward gives loss sums, never logits of a whole batch.

    Args:
        student: The model that learns.
        teacher_head: The teacher's output head; held outside the module's parameters.
        objective: Weights, temperature and chunk size.
        body: What computes the student's hidden states; its own body, or the compiled form of it.
    """

    def __init__(
        self, student: GooseForCausalLM, teacher_head: LinearHead, objective: Objective, body: Any = None
    ) -> None:
        super().__init__()
        self.student = student
        # In tuples, so that neither becomes a parameter or submodule a second time.
        self._teacher_head = (teacher_head,)
        self._body = (body if body is not None else student.model,)
        self.kl_weight = objective.kl_weight
        self.cross_entropy_weight = objective.cross_entropy_weight
        self.temperature = objective.temperature.value
        self.chunk_tokens = objective.chunk_tokens

    def forward(
        self, input_ids: Int[Tensor, "batch time"], teacher_hidden: Float[Tensor, "batch time teacher_width"]
    ) -> StepRecord:
        """Loss sums of one micro-batch of full rows.

        A row of n tokens has n positions with a KL term and n - 1 with a next token. The cross-entropy is
        weighted by n / (n - 1), so that dividing the loss by the number of KL tokens gives both their means.
        """
        batch, time = input_ids.shape
        labels = torch.full_like(input_ids, IGNORED)
        labels[:, :-1] = input_ids[:, 1:]
        hidden = self._body[0](input_ids=input_ids).last_hidden_state
        head = self.student.lm_head
        sums = distillation_sums(
            student_hidden=hidden.flatten(0, 1),
            student_head=LinearHead(head.weight, head.bias),
            teacher_hidden=teacher_hidden.flatten(0, 1),
            teacher_head=self._teacher_head[0],
            labels=labels.flatten(),
            valid=torch.ones(batch * time, dtype=torch.bool, device=input_ids.device),
            temperature=self.temperature,
            kl_weight=self.kl_weight,
            cross_entropy_weight=self.cross_entropy_weight * time / (time - 1),
            chunk_tokens=self.chunk_tokens,
            matmul_dtype=_matmul_dtype(input_ids.device),
        )
        return StepRecord(
            loss=sums.loss,
            kl_nats=sums.kl_nats,
            cross_entropy_nats=sums.cross_entropy_nats,
            kl_tokens=batch * time,
            cross_entropy_tokens=batch * (time - 1),
        )


def _matmul_dtype(device: torch.device) -> torch.dtype | None:
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None
