"""AdamW with decay on matrices alone, a peak rate for new and one for copied weights, and the course of both."""

import math
from collections.abc import Set

from torch import nn
from torch.optim import AdamW

from asnn_goose.config_temperature import TrainedTemperature
from asnn_goose.config_training import TrainingOptions
from asnn_goose.training.stages import StagePlan

PEAK = "peak_learning_rate"
RATE_NAME = "rate_name"
CLIPPED = "clipped"
"""Keys that our parameter groups have beside AdamW's own: their peak, what metrics call their rate, and whether their
gradients count into the norm that is clipped."""


def build_optimizer(
    module: nn.Module,
    training: TrainingOptions,
    stage: StagePlan,
    copied: Set[nn.Parameter] = frozenset(),
    temperature: nn.Parameter | None = None,
) -> AdamW:
    """Fused AdamW over the trainable parameters, in groups of their own rate and decay.

    Vectors and scalars (norms, gains, mixes) do not decay, unless the recipe says so. A temperature that learns is a
    group by itself.
    """
    groups = []
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    trainable = [parameter for parameter in trainable if parameter is not temperature]
    rates = ((False, "learning_rate", stage.learning_rate), (True, "copied_learning_rate", stage.copied_learning_rate))
    for of_teacher, name, rate in rates:
        own = [parameter for parameter in trainable if (parameter in copied) == of_teacher]
        for members, decay in (
            ([p for p in own if p.ndim >= 2], training.weight_decay),
            ([p for p in own if p.ndim < 2], training.weight_decay if training.decay == "all" else 0.0),
        ):
            if members:
                group = {"params": members, "weight_decay": decay, "lr": rate, PEAK: rate}
                groups.append({**group, RATE_NAME: name, CLIPPED: True})
    chosen = stage.objective.temperature
    if temperature is not None and isinstance(chosen, TrainedTemperature):
        rate, apart = chosen.learning_rate or stage.learning_rate, chosen.optimizer == "own"
        kept = {"weight_decay": 0.0 if apart else training.weight_decay, "lr": rate, PEAK: rate, CLIPPED: not apart}
        groups.append({"params": [temperature], **kept, RATE_NAME: "temperature_learning_rate"})
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


def learning_rates(optimizer: AdamW) -> dict[str, float]:
    """The rates of new and copied weights and of a temperature that learns, by the names that metrics have for them.

    Where a stage trains only new weights or only copied ones, both have the rate of these.
    """
    rates = {group[RATE_NAME]: group["lr"] for group in reversed(optimizer.param_groups)}
    of_weights = [rates[name] for name in ("learning_rate", "copied_learning_rate") if name in rates]
    return {"learning_rate": of_weights[0], "copied_learning_rate": of_weights[-1]} | rates


def unclipped(optimizer: AdamW) -> frozenset[nn.Parameter]:
    """The parameters whose gradients do not count into the norm that is clipped."""
    return frozenset(p for group in optimizer.param_groups if not group.get(CLIPPED, True) for p in group["params"])
