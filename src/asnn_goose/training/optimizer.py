"""AdamW with decay on matrices alone, and the warm-up and cosine its learning rate follows."""

import math

from torch import nn
from torch.optim import AdamW

from asnn_goose.config import TrainingOptions


def build_optimizer(module: nn.Module, training: TrainingOptions) -> AdamW:
    """Fused AdamW over the trainable parameters; vectors and scalars (norms, gains, mixes) do not decay."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=training.learning_rate, betas=training.betas, fused=True)


def learning_rate_at(step: int, total_steps: int, training: TrainingOptions) -> float:
    """Learning rate of the update that follows `step` finished ones.

    Linear warm-up that reaches the peak at the end of `warmup_steps`, then a half cosine to the floor.
    """
    peak, warmup = training.learning_rate, min(training.warmup_steps, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    floor = training.learning_rate_floor
    return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: AdamW, learning_rate: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
