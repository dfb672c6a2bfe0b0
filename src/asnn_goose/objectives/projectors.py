"""What learns beside the student so that states can be compared: projections to the teacher's width, and layer weights.

No part of it is the student's, so nothing of it is in the model that a run saves; checkpoints hold it.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asnn_goose.config_features import (
    FactorizedProjector,
    LinearProjector,
    MlpProjector,
    NoProjector,
    Projector,
    ProjectorOptions,
)


def build_projector(options: Projector, student: int, teacher: int, generator: torch.Generator) -> nn.Module:
    """What takes a state of `student` channels to `teacher` channels, its weights drawn from N(0, std)."""
    match options:
        case NoProjector():
            return nn.Identity()
        case LinearProjector():
            return _matrix(options, student, teacher, generator)
        case MlpProjector(hidden_width=hidden_width):
            between = hidden_width or teacher
            first = _matrix(options, student, between, generator)
            return nn.Sequential(first, nn.SiLU(), _matrix(options, between, teacher, generator))
        case FactorizedProjector(rank=rank):
            first = _matrix(options, student, rank, generator)
            return nn.Sequential(first, _matrix(options, rank, teacher, generator))


def _matrix(options: ProjectorOptions, inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    matrix = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(matrix.weight, std=options.std or 1 / math.sqrt(inputs), generator=generator)
    matrix.weight.requires_grad_(not options.frozen)
    return matrix


class StateMixture(nn.Module):
    """The mean of several states, its weights the softmax of learned numbers (one vector, so that nothing decays it).

    Args:
        states: How many.
        center: Place, from 0, around which the weights start, as a Gaussian.
        spread: That Gaussian's standard deviation, in places.
    """

    def __init__(self, states: int, center: int, spread: float) -> None:
        super().__init__()
        places = torch.arange(states, dtype=torch.float32)
        self.logits = nn.Parameter(-0.5 * ((places - center) / spread).square())

    def forward(self, states: Sequence[Float[Tensor, "batch time width"]]) -> Float[Tensor, "batch time width"]:
        """The mean."""
        weights = self.logits.softmax(dim=0)
        kind = torch.promote_types(states[0].dtype, torch.float32)
        mixed = weights[0] * states[0].to(kind)
        for weight, state in zip(weights[1:], states[1:], strict=True):
            mixed = mixed + weight * state
        return mixed
