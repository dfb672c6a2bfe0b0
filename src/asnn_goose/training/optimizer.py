"""AdamW with decay on matrices alone, a peak rate for new and one for copied weights, and the course of both."""

import math
from collections.abc import Set

from torch import nn
from torch.optim import AdamW

from asnn_goose.config_training import TrainingOptions
from asnn_goose.training.stages import StagePlan

PEAK = "peak_learning_rate"


def build_optimizer(
    module: nn.Module, training: TrainingOptions, stage: StagePlan, copied: Set[nn.Parameter] = frozenset()
) -> AdamW:
    """Fused AdamW over the trainable parameters, in groups of their own rate and decay.

    Vectors and scalars (norms, gains, mixes) do not decay, unless the recipe says so.
    """
    groups = []
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for of_teacher, rate in ((False, stage.learning_rate), (True, stage.copied_learning_rate)):
        own = [parameter for parameter in trainable if (parameter in copied) == of_teacher]
        for members, decay in (
            ([p for p in own if p.ndim >= 2], training.weight_decay),
            ([p for p in own if p.ndim < 2], training.weight_decay if training.decay == "all" else 0.0),
        ):
            if members:
                groups.append({"params": members, "weight_decay": decay, "lr": rate, PEAK: rate})
    return AdamW(groups, betas=training.betas, fused=True)


def learning_rate_share(step: int, total_steps: int, training: TrainingOptions) -> float:
    """Share of the peak learning rate at the update that follows `step` finished ones of a stage.

    Linear warm-up that reaches the peak at the end of `warmup_steps`, or one update later if it begins with 0, then a
    half cosine to the floor.
    """
    warmup = min(training.warmup_steps, total_steps)
    if step < warmup:
        return (step if training.warmup_from_zero else step + 1) / warmup
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    floor = training.learning_rate_floor
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: AdamW, share: float) -> None:
    """Give every parameter group this share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = share * group[PEAK]
