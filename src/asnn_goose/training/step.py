"""One differentiable unit of distillation: the module that the loop, accelerate and every wrapper see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asnn_goose.config_objective import JensenShannon, Objective, SkewKl
from asnn_goose.config_temperature import LearnedTemperature
from asnn_goose.kernels.divergences import Divergence
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.kernels.kd_loss import distillation_sums
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.objectives.entropy import softened_entropy
from asnn_goose.objectives.schedules import ScheduledNumbers, Span
from asnn_goose.objectives.temperature import build_temperature
from asnn_goose.objectives.terms import matmul_dtype
from asnn_goose.training.feature_terms import FeatureTerms
from asnn_goose.training.spike_terms import SpikePenalties

IGNORED = -100


@dataclass(frozen=True)
class StepRecord:
    """What one micro-batch adds to a step.

    Attributes:
        loss: Differentiable sum over tokens of what is minimized; divide by the window's valid tokens.
        tokens: Tokens it was summed over.
        means: What the log shows, by name, each a mean over the tokens that have it.
    """

    loss: Tensor
    tokens: int
    means: dict[str, Tensor]


class TeacherView(NamedTuple):
    """What distillation sees of the teacher on a micro-batch.

    `hidden` is what its head multiplies, [batch time teacher_width]; `stream`, where hidden states are compared, its
    residual stream at the places that `FeatureTerms.states` lists.
    """

    hidden: Float[Tensor, "batch time teacher_width"]
    stream: Sequence[Float[Tensor, "batch time width"]] = ()


class DistillationStep(nn.Module):
    """Student and objective together; its forward gives loss sums, never logits of a whole batch.

    Args:
        student: The model that learns.
        teacher_head: The teacher's output head; held outside the module's parameters.
        objective: Weights, temperature and chunk size.
        features: The objective's terms on hidden states, if it has any.
        span: The stage's part of the budget that schedules run over; None where nothing is scheduled.
    """

    def __init__(
        self,
        student: GooseForCausalLM,
        teacher_head: LinearHead,
        objective: Objective,
        features: FeatureTerms | None = None,
        span: Span | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        # In a tuple, so that it becomes no parameter.
        self._teacher_head = (teacher_head,)
        self.numbers = numbers = ScheduledNumbers(span, student.lm_head.weight.device)
        self.kl_weight = numbers.follow("kl_weight", objective.kl_weight)
        self.cross_entropy_weight = numbers.follow("cross_entropy_weight", objective.cross_entropy_weight)
        chosen, hidden = objective.temperature, objective.hidden_alignment
        self.temperature = build_temperature(chosen, numbers)
        self.entropy_weight = chosen.entropy_weight if isinstance(chosen, LearnedTemperature) else 0.0
        self.divergence = kernel_divergence(objective)
        self.chunk_tokens = objective.chunk_tokens
        self.features = features
        if features is not None and features.alignment is not None and hidden is not None:
            features.alignment.weight = numbers.follow("hidden_alignment_weight", hidden.weight)
        self._penalties = SpikePenalties(student, objective)

    def reach(self, done: int, lost: Tensor | None = None) -> None:
        """Set what holds after `done` steps of the stage, `lost` of which a device knows to have been skipped."""
        self.numbers.reach(done, lost)
        self.temperature.settle()

    def figures(self) -> dict[str, Tensor]:
        """The temperature, and what is scheduled, as they are now."""
        return {**self.numbers.figures(), **self.temperature.figures()}

    def forward(self, input_ids: Int[Tensor, "batch time"], teacher: TeacherView) -> StepRecord:
        """Loss sums of one micro-batch of full rows.

        A row of n tokens has n positions with a KL term and n - 1 with a next token. The cross-entropy is
        weighted by n / (n - 1), so that dividing the loss by the number of KL tokens gives both their means.
        """
        batch, time = input_ids.shape
        labels = torch.full_like(input_ids, IGNORED)
        labels[:, :-1] = input_ids[:, 1:]
        follows = self.features is not None
        found = self.student.model(input_ids=input_ids, output_hidden_states=follows)
        hidden = found.last_hidden_state
        head, heat, dtype = self.student.lm_head, self.temperature(), matmul_dtype(input_ids.device)
        sums = distillation_sums(
            student_hidden=hidden.flatten(0, 1),
            student_head=LinearHead(head.weight, head.bias),
            teacher_hidden=teacher.hidden.flatten(0, 1),
            teacher_head=self._teacher_head[0],
            labels=labels.flatten(),
            valid=torch.ones(batch * time, dtype=torch.bool, device=input_ids.device),
            temperature=heat.value,
            divergence_weight=self.kl_weight,
            cross_entropy_weight=self.cross_entropy_weight * time / (time - 1),
            chunk_tokens=self.chunk_tokens,
            matmul_dtype=dtype,
            divergence=self.divergence,
        )
        tokens, predictions = batch * time, batch * (time - 1)
        means = {
            # Without T squared, and at temperature 1.
            ("kl_nats" if self.divergence.kind == "forward_kl" else self.divergence.kind): sums.divergence_nats
            / tokens,
            "cross_entropy_nats": sums.cross_entropy_nats / predictions,
            "loss_nats": sums.loss.detach() / tokens,
        }
        loss = sums.loss
        if heat.penalty is not None:
            means["temperature_penalty"] = heat.penalty.detach()
            loss = loss + tokens * heat.penalty
        if self.entropy_weight and heat.own is not None:
            entropy = softened_entropy(
                teacher.hidden.flatten(0, 1), self._teacher_head[0], heat.own, self.chunk_tokens, dtype
            )
            means["teacher_entropy_nats"] = entropy.detach() / tokens
            loss = loss - self.entropy_weight * entropy
        if self.features is not None:
            means |= self.features.figures()
            for name, weight, term in self.features.of(self.student, found, teacher.hidden, teacher.stream):
                means[name] = term.detach()
                loss = loss + weight * tokens * term
        for name, factor, penalty in self._penalties.of(found.events):
            means[name] = penalty.detach()
            loss = loss + factor * tokens * penalty
        return StepRecord(loss=loss, tokens=tokens, means=means)


def kernel_divergence(objective: Objective) -> Divergence:
    """The divergence that an objective states, as the loss takes it."""
    stated = objective.divergence
    return (
        Divergence(stated.kind, stated.share) if isinstance(stated, JensenShannon | SkewKl) else Divergence(stated.kind)
    )
