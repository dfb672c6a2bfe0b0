"""Hidden alignment as a term of the objective: chosen states of the student follow chosen states of the teacher."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asnn_goose.config_features import HiddenAlignment, LearnedMap
from asnn_goose.config_schedules import numbers_of
from asnn_goose.errors import ConfigError
from asnn_goose.objectives.features import STATE_ERRORS, WIDTH_FREE, StateError
from asnn_goose.objectives.layer_maps import KEY, Depths, alignment_pairs, uniform_states
from asnn_goose.objectives.projectors import StateMixture, build_projector
from asnn_goose.objectives.terms import Seen, Value


class AlignmentTerm(nn.Module):
    """The mean of the compared states' errors.

    Args:
        options: How and with what weight.
        depths: Blocks of both models.
        widths: Channels of the student's and of the teacher's stream.
        generator: Draws the projectors.
        error: What compares two states; None takes the plain form of the one that is asked for.

    Raises:
        ConfigError: A layer map that does not fit, or widths that differ where nothing projects.
    """

    def __init__(
        self,
        options: HiddenAlignment,
        depths: Depths,
        widths: tuple[int, int],
        generator: torch.Generator,
        error: StateError | None = None,
    ) -> None:
        super().__init__()
        self.options, self.depths = options, depths
        # A schedule's first value; whoever follows the schedule puts its number here.
        self.weight: float | Tensor = numbers_of(options.weight)[0]
        self.pairs = alignment_pairs(options, depths)
        check_widths(options, *widths)
        self.projectors = nn.ModuleList(build_projector(options.projector, *widths, generator) for _ in self.pairs)
        centers = uniform_states(depths.student, depths.teacher)
        mixtures = {
            str(pair.student): StateMixture(depths.teacher, centers[pair.student - 1] - 1, options.layer_map.spread)
            for pair in self.pairs
            if isinstance(options.layer_map, LearnedMap) and len(pair.teacher) > 1
        }
        self.mixtures = nn.ModuleDict(mixtures)
        weights = options.layer_weights or (1.0,) * len(self.pairs)
        self._weights = [weight / sum(weights) for weight in weights]
        self._error = error or STATE_ERRORS[options.loss]
        normed = {depths.teacher} if options.last_state == "normed" else set()
        self.states = frozenset(state for pair in self.pairs for state in pair.teacher) - normed

    def of(self, seen: Seen) -> Iterator[Value]:
        """`hidden_error`, whatever compares the states."""
        yield Value("hidden_error", self.weight, self.error(seen))

    def error(self, seen: Seen) -> Float[Tensor, ""]:
        """The weighted mean of the states' errors."""
        errors = [
            self._error(projector(seen.state(pair.student)), self._wanted(seen, pair.student, pair.teacher))
            for pair, projector in zip(self.pairs, self.projectors, strict=True)
        ]
        if self.options.layer_weights is None:
            return torch.stack(errors).mean()
        return torch.stack([weight * error for weight, error in zip(self._weights, errors, strict=True)]).sum()

    def share(self, done: int, off: bool) -> float:
        """Rises linearly, from the first step on."""
        steps = self.options.introduce_steps
        return min(1.0, (done + 1) / steps) if steps else 1.0

    def _wanted(self, seen: Seen, student: int, numbers: Sequence[int]) -> Tensor:
        states = [self._teacher_state(seen, number) for number in numbers]
        if str(student) not in self.mixtures:
            return states[0]
        mixed: Tensor = self.mixtures[str(student)](states)
        return mixed

    def _teacher_state(self, seen: Seen, number: int) -> Tensor:
        return seen.teacher[number] if number in self.states else seen.teacher_last


def check_widths(options: HiddenAlignment, student: int, teacher: int) -> None:
    """Refuse to compare streams of different widths without anything between.

    Raises:
        ConfigError: They differ, and the error compares channel by channel.
    """
    if student != teacher and options.projector.kind == "none" and options.loss not in WIDTH_FREE:
        raise ConfigError(
            f"{KEY}.loss={options.loss} compares {student} channels of the student with {teacher} of the teacher: give "
            f"{KEY}.projector.kind=linear (or mlp, factorized), or loss={' or '.join(WIDTH_FREE)}"
        )
