"""Spikes that mean what a teacher's state is: the loss of the record's last notebook."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asnn_goose.config_features import SemanticSpikes
from asnn_goose.errors import ConfigError
from asnn_goose.objectives.layer_maps import Depths, chosen_pairs
from asnn_goose.objectives.terms import Seen, Value

KEY = "objective.semantic"


@torch.no_grad()
def spike_target(state: Float[Tensor, "batch time width"], threshold: float) -> Float[Tensor, "batch time width"]:
    """-1, 0 or 1: the signs of a state less its mean over channels, where they exceed threshold * mean magnitude."""
    centered = state.to(torch.promote_types(state.dtype, torch.float32))
    centered = centered - centered.mean(dim=-1, keepdim=True)
    magnitude = centered.abs()
    return centered.sign() * (magnitude > threshold * magnitude.mean(dim=-1, keepdim=True))


def semantic_error(
    key: Float[Tensor, "batch time width"],
    value: Float[Tensor, "batch time width"],
    target: Float[Tensor, "batch time width"],
) -> Float[Tensor, ""]:
    """Mean square of (key + value) / 2 - target."""
    return ((key + value) / 2 - target).square().mean()


class SemanticTerm(nn.Module):
    """The error of k and v of chosen blocks, averaged over them.

    Args:
        options: Weight, rise and pairs.
        depths: Blocks of both models.
        widths: Channels of both streams.

    Raises:
        ConfigError: Blocks that do not exist, or widths that differ.
    """

    def __init__(self, options: SemanticSpikes, depths: Depths, widths: tuple[int, int]) -> None:
        super().__init__()
        if widths[0] != widths[1]:
            raise ConfigError(
                f"{KEY} compares {widths[0]} channels of the student's spikes with {widths[1]} of the teacher: give "
                f"student.width={widths[1]}, or drop it"
            )
        self.options, self.depths = options, depths
        self.pairs = chosen_pairs(options.pairs, depths, KEY)
        normed = {depths.teacher} if options.last_state == "normed" else set()
        self.states = frozenset(teacher + 1 for _, teacher in self.pairs) - normed

    def of(self, seen: Seen) -> Iterator[Value]:
        """`semantic_error`."""
        sent = seen.found.sent
        # Encoders of k and v show what they send where this term is one of the objective's.
        assert sent is not None
        errors = []
        for student, teacher in self.pairs:
            state = seen.teacher[teacher + 1] if teacher + 1 in self.states else seen.teacher_last
            target = spike_target(state, self.options.threshold)
            errors.append(semantic_error(sent[student]["k"], sent[student]["v"], target))
        yield Value("semantic_error", self.options.weight, torch.stack(errors).mean())

    def share(self, done: int, off: bool) -> float:
        """0 up to `begin_step`, then linear up to 1 at `full_step`."""
        begin, full = self.options.begin_step, self.options.full_step
        return min(1.0, max(0.0, (done - begin) / (full - begin)))
