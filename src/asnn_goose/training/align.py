"""Layer-local alignment: every sublayer learns its teacher's at once, from one teacher forward.

No gradient crosses layers. Fed by the teacher, each mixer is given what the attention it replaces was given, each
feed-forward part what its teacher's was, so that errors of earlier layers do not reach it (stage A of RADLADS, arXiv
2505.03005, with squared errors relative to the teacher's). Fed by the student, each is given what the student's
sublayers before it have made of the stream, and learns to bring the stream back to the teacher's, their errors too
(blocks reconstructed one behind another on quantized inputs, as BRECQ does, Li et al. 2021). A sublayer whose inputs
have begun to spike learns by it to do with spikes what it did.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asnn_goose.models.block import GooseBlock
from asnn_goose.models.mixers import MixerOutput
from asnn_goose.models.spiking_linear import Traces
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.sublayers import BlockRecord, SublayerRecord
from asnn_goose.objectives.features import SMALLEST_POWER, channel_error
from asnn_goose.training.step import StepRecord


def run_mixer(block: GooseBlock, stream: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
    """What a block's mixer adds to the stream, as a plain function, which is compiled once and then serves all."""
    mixed: MixerOutput = block.mixer(block.mixer_norm(stream))
    return mixed.residual


def run_feed_forward(block: GooseBlock, stream: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
    """What a block's feed-forward part adds to the stream, likewise."""
    found: tuple[Tensor, Traces] = block.feed_forward(block.feed_forward_norm(stream))
    return found[0]


Runner = Callable[[GooseBlock, Tensor], Tensor]


@dataclass(frozen=True)
class SublayerRunners:
    """What runs a block's sublayers; compiled forms take the plain ones' place."""

    mixer: Runner = run_mixer
    feed_forward: Runner = run_feed_forward


class AlignmentStep(nn.Module):
    """Student and alignment together, in the shape that the loop expects of a step.

    Args:
        student: The model whose sublayers learn; nothing else of it takes part.
        runners: What runs them.
        inputs: Whose stream the sublayers are fed.
    """

    def __init__(
        self,
        student: GooseForCausalLM,
        runners: SublayerRunners | None = None,
        inputs: Literal["teacher", "student"] = "teacher",
    ) -> None:
        super().__init__()
        self.student = student
        self.runners = runners or SublayerRunners()
        self.inputs = inputs

    def forward(self, input_ids: Int[Tensor, "batch time"], records: Sequence[BlockRecord]) -> StepRecord:
        """The sum over tokens of each recorded sublayer's relative squared error, averaged over sublayers.

        Fed by the teacher, an error is relative to the mean square of the teacher's sublayer over the micro-batch; fed
        by the student, that of each channel of the stream to its variance. Then both sublayers of all blocks count.
        """
        tokens = input_ids.numel()
        if self.inputs == "student":
            errors = list(self._stream_errors(records))
        else:
            errors = [self._error(*work) for work in self._recorded(records)]
        error = torch.stack(errors).mean()
        return StepRecord(loss=error * tokens, tokens=tokens, means={"relative_error": error.detach()})

    def _recorded(self, records: Sequence[BlockRecord]) -> Iterator[tuple[GooseBlock, Runner, SublayerRecord]]:
        for module, record in zip(self.student.model.layers, records, strict=True):
            block = cast(GooseBlock, module)
            if record.attention is not None:
                yield block, self.runners.mixer, record.attention
            if record.feed_forward is not None:
                yield block, self.runners.feed_forward, record.feed_forward

    def _stream_errors(self, records: Sequence[BlockRecord]) -> Iterator[Tensor]:
        """How far the stream is from the teacher's behind each sublayer, which the one before it does not learn from.

        A block that stands for several of the teacher's is to leave what the last of them left.
        """
        attention, feed_forward = (
            [getattr(record, part) for record in records] for part in ("attention", "feed_forward")
        )
        last = feed_forward[-1]
        ends = [*(record.stream for record in attention[1:]), last.stream + last.output]
        stream = attention[0].stream
        for module, middle, end in zip(self.student.model.layers, feed_forward, ends, strict=True):
            block = cast(GooseBlock, module)
            for runner, target in ((self.runners.mixer, middle.stream), (self.runners.feed_forward, end)):
                stream = stream.detach().to(block.feed_forward.up.weight.dtype)
                stream = stream + runner(block, stream)
                yield channel_error(stream, target)

    def _error(self, block: GooseBlock, runner: Runner, record: SublayerRecord) -> Tensor:
        residual = runner(block, record.stream.to(block.feed_forward.up.weight.dtype))
        target = record.output.float()
        power = target.square().mean().clamp_min(SMALLEST_POWER)
        return (residual.float() - target).square().mean() / power
