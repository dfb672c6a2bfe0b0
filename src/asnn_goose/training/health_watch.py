"""What a run watches of its own health: how far its steps go, and how near the student is to its teacher.

Of gradients the loop itself keeps norm and clip rate; `asnn_goose.health` sums all of it up.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from asnn_goose.evaluation.agreement import Agreement, agreement
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.teacher import body_hidden_states
from asnn_goose.training.distributed import ProcessStep
from asnn_goose.training.work import RunMaterial

HELD_OUT_TOKENS = 4096
"""Leading tokens of the evaluation text on which student and teacher are compared: at an agreement of one half its
standard error is 0.008."""
MOST_MATRICES = 16
"""Matrices whose last step is measured: a few dozen kernels a logging interval, whatever the size of the model."""


class HealthWatch:
    """Measures at logging intervals and evaluations; nothing is measured, and the device not waited for, in between.

    Args:
        material: Models and evaluation text.
        step: The processes' common step, which looks at the student.
    """

    def __init__(self, material: RunMaterial, step: ProcessStep) -> None:
        self.material, self.step = material, step
        self._train_nats: float | None = None
        self._teacher_hidden: Tensor | None = None

    def interval(self, optimizer: AdamW, figures: dict[str, float]) -> dict[str, float | None]:
        """What a logging interval's line holds; `figures` are its means, whose cross-entropy is kept for the gap."""
        self._train_nats = figures.get("cross_entropy_nats", self._train_nats)
        return {"update_to_weight": update_to_weight(optimizer)}

    def evaluation(self, loss_nats: float) -> dict[str, float]:
        """What an evaluation's line holds, on the leading tokens of its text; all processes take part.

        Args:
            loss_nats: Mean cross-entropy of the evaluation, in nats per token.
        """
        material = self.material
        head = material.teacher.head
        ids = material.windows.probe(HELD_OUT_TOKENS).to(head.weight.device)
        if self._teacher_hidden is None:
            self._teacher_hidden = material.teacher.hidden_states_uncompiled(ids)
        found = self.step.look(compare_with_teacher, material.student, ids, self._teacher_hidden, head)
        gap = {} if self._train_nats is None else {"train_validation_gap_nats": loss_nats - self._train_nats}
        return {**gap, "top1_agreement": found.top1_agreement, "held_out_kl_nats": found.kl_nats}


def compare_with_teacher(
    student: GooseForCausalLM, ids: Tensor, teacher_hidden: Tensor, teacher_head: LinearHead
) -> Agreement:
    """The student's agreement with the teacher, whose hidden states on the same ids are known."""
    was_training = student.training
    student.eval()
    with torch.inference_mode():
        hidden = body_hidden_states(student.model, ids)
    student.train(was_training)
    head = LinearHead(student.lm_head.weight, student.lm_head.bias)
    return agreement(hidden.flatten(0, 1), head, teacher_hidden.flatten(0, 1), teacher_head)


@torch.no_grad()
def update_to_weight(optimizer: AdamW) -> float | None:
    """Norm of AdamW's last step over the norm of the weights, averaged over some matrices; None before a first step.

    The moments say what the last step was, so no weights are kept to compare with: rate * (m / (sqrt(v) + eps) +
    decay * w), m and v with their bias taken off. Of up to `MOST_MATRICES` matrices, evenly taken from all that train,
    each counts alike; of a sharded one this process's share. The device is waited for once.
    """
    matrices = [
        (parameter, group) for group in optimizer.param_groups for parameter in group["params"]
        if parameter.ndim >= 2 and optimizer.state.get(parameter)
    ]  # fmt: skip
    if not matrices:
        return None
    chosen = matrices[:: -(-len(matrices) // MOST_MATRICES)]
    ratios = [_last_step_ratio(parameter, group, optimizer.state[parameter]) for parameter, group in chosen]
    return float(torch.stack(ratios).mean())


def _last_step_ratio(parameter: nn.Parameter, group: dict[str, Any], state: dict[str, Tensor]) -> Tensor:
    weight, mean, square = (
        found.to_local() if isinstance(found, DTensor) else found
        for found in (parameter.detach(), state["exp_avg"], state["exp_avg_sq"])
    )
    first, second = (1.0 - beta ** state["step"].to(mean.device) for beta in group["betas"])
    step = mean / first / ((square / second).sqrt_().add_(group["eps"]))
    step.add_(weight, alpha=group["weight_decay"]).mul_(group["lr"])
    ratio: Tensor = step.norm() / weight.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return ratio
