"""Layer-local alignment: every mixer learns its teacher's attention at once, from one teacher forward.

Each mixer is fed what the attention it replaces was fed, so errors of earlier layers do not reach it and no gradient
crosses layers (stage A of RADLADS, arXiv 2505.03005, with squared errors relative to the teacher's).
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asnn_goose.models.goose_mixer import GooseMixer
from asnn_goose.models.mixers import MixerOutput
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.sublayers import AttentionRecord
from asnn_goose.training.step import SMALLEST_POWER, StepRecord


def run_mixer(mixer: GooseMixer, given: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
    """A mixer's output as a plain function, which is compiled once and then serves all layers."""
    mixed: MixerOutput = mixer(given)
    return mixed.residual


class AlignmentStep(nn.Module):
    """Student and alignment together, in the shape that the loop expects of a step.

    Args:
        student: The model whose mixers learn; nothing else of it takes part.
        runner: What runs a mixer; `run_mixer`, or its compiled form.
    """

    def __init__(self, student: GooseForCausalLM, runner: Callable[[GooseMixer, Tensor], Tensor] = run_mixer) -> None:
        super().__init__()
        self.student = student
        self.runner = runner

    def forward(self, input_ids: Int[Tensor, "batch time"], records: Sequence[AttentionRecord]) -> StepRecord:
        """The sum over tokens of each layer's relative squared error, averaged over layers.

        An error is relative to the mean square of the layer's attention over the micro-batch.
        """
        tokens = input_ids.numel()
        errors = []
        for mixer, record in zip(self.student.model.mixers(), records, strict=True):
            goose = cast(GooseMixer, mixer)
            residual = self.runner(goose, record.given.to(goose.head_norm.dtype))
            target = record.output.float()
            power = target.square().mean().clamp_min(SMALLEST_POWER)
            errors.append((residual.float() - target).square().mean() / power)
        error = torch.stack(errors).mean()
        return StepRecord(loss=error * tokens, tokens=tokens, means={"relative_error": error.detach()})
