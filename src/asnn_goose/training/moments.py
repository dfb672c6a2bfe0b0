"""What an optimizer has learned of the gradients, handed on from one stage to the next where that asks for it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import AdamW

from asnn_goose.training.stages import StagePlan

Moments = dict[Tensor, Any]
"""An optimizer's state by weight."""


def kept_moments(optimizer: AdamW | None, following: StagePlan) -> Moments:
    """What a stage that is over leaves to the following one: its moments, or nothing."""
    return dict(optimizer.state) if optimizer is not None and following.keeps_moments else {}


def take_moments(optimizer: AdamW, moments: Mapping[Tensor, Any]) -> None:
    """Begin with these moments, for all weights that the optimizer trains; the others begin at 0."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in moments:
                optimizer.state[parameter] = moments[parameter]
