"""Feature dynamics: how a model's states, or what can be predicted from them, move from layer to layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asnn_goose.config_features import CkaDynamics, DynamicsOptions, PredictionDynamics
from asnn_goose.errors import ConfigError
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.kernels.kd_loss import NOT_SCORED, distillation_sums
from asnn_goose.kernels.kd_targets import dynamics_sums
from asnn_goose.objectives.features import linear_cka, squared_error
from asnn_goose.objectives.layer_maps import Depths, chosen_pairs, reading_states
from asnn_goose.objectives.terms import Seen, Value, matmul_dtype

KEY = "objective.feature_dynamics"


class SwitchState(NamedTuple):
    """The perplexity at the end of the warm-up, None before, and whether the dynamics are off for good."""

    baseline: float | None = None
    off: bool = False


@dataclass(frozen=True)
class KillSwitch:
    """Turns a term off for good when perplexity rises too far above what it was at the end of its warm-up.

    Attributes:
        warmup_steps: Steps of the stage before the term counts.
        ratio: Perplexity over the baseline's above which it fires.
    """

    warmup_steps: int
    ratio: float

    def judge(self, state: SwitchState, done: int, perplexity: float) -> SwitchState:
        """The state after an evaluation: the first one at or behind the warm-up's end arms it, later ones may fire it.

        The record armed it only by an evaluation at that very step, of which there was none.
        """
        if state.off or done < self.warmup_steps:
            return state
        if state.baseline is None:
            return SwitchState(perplexity, False)
        # A perplexity that is no number is above every limit.
        return SwitchState(state.baseline, not perplexity <= self.ratio * state.baseline)


def dynamics_share(options: DynamicsOptions, done: int, off: bool) -> float:
    """0 within the warm-up and once the switch has fired, else 1."""
    return 0.0 if off or done < options.warmup_steps else 1.0


class CkaTerm(nn.Module):
    """1 - CKA of how blocks change the stream, averaged over pairs of blocks.

    Args:
        options: Weight and pairs.
        depths: Blocks of both models.
        widths: Channels of both streams.

    Raises:
        ConfigError: Blocks that do not exist, no pair left, or widths that `compare` cannot compare.
    """

    def __init__(self, options: CkaDynamics, depths: Depths, widths: tuple[int, int]) -> None:
        super().__init__()
        self.options = options
        pairs = chosen_pairs(options.pairs, depths, KEY)
        offset = 1 if options.recorded_offset else 0
        ends = ((student + 1 + offset, teacher + 1 + offset) for student, teacher in pairs)
        self.ends = tuple((s, t) for s, t in ends if s <= depths.student and t <= depths.teacher)
        """States behind the compared changes."""
        if not self.ends:
            raise ConfigError(f"{KEY}.recorded_offset=true skips every pair of {list(pairs)}: set it to false")
        if options.compare == "mse" and widths[0] != widths[1]:
            raise ConfigError(
                f"{KEY}.compare=mse compares {widths[0]} channels of the student with {widths[1]} of the teacher: give "
                "compare=cka"
            )
        self.states = frozenset(state for _, end in self.ends for state in (end - 1, end))

    def of(self, seen: Seen) -> Iterator[Value]:
        """`dynamics_error`."""
        errors = []
        for student, teacher in self.ends:
            change = _precise(seen.state(student)) - _precise(seen.state(student - 1))
            wanted = _precise(seen.teacher[teacher]) - _precise(seen.teacher[teacher - 1])
            if self.options.compare == "mse":
                errors.append(squared_error(change, wanted))
            else:
                errors.append(1 - linear_cka(change.flatten(0, 1), wanted.flatten(0, 1), unit_rows=True))
        yield Value("dynamics_error", self.options.weight, torch.stack(errors).mean())

    def share(self, done: int, off: bool) -> float:
        """As `dynamics_share`."""
        return dynamics_share(self.options, done, off)


class PredictionTerm(nn.Module):
    """Readings of states through each model's own head: their KL, and 1 - cos of how they change.

    Args:
        options: Weights and number of readings.
        depths: Blocks of both models.
        teacher_norm: The teacher's final norm; held outside the module's parameters, as the head is.
        teacher_head: Its head.
        chunk_tokens: Tokens whose logits exist at one time.

    Raises:
        ConfigError: A model with one block.
    """

    def __init__(
        self,
        options: PredictionDynamics,
        depths: Depths,
        teacher_norm: nn.Module,
        teacher_head: LinearHead,
        chunk_tokens: int,
    ) -> None:
        super().__init__()
        self.options, self.depths, self.chunk_tokens = options, depths, chunk_tokens
        # In a tuple, so that it becomes no part of the module.
        self._teacher = (teacher_norm, teacher_head)
        self.readings = reading_states(options.layers, depths)
        # The last reading is that of the last hidden states, which are there in any case.
        self.states = frozenset(teacher for _, teacher in self.readings[:-1])

    def of(self, seen: Seen) -> Iterator[Value]:
        """`trajectory_kl_nats` and `dynamics_error`, those whose weights are not 0."""
        read = [(self._student(seen, s), self._teacher_state(seen, t)) for s, t in self.readings]
        head = LinearHead(seen.student.lm_head.weight, seen.student.lm_head.bias)
        tokens, device = len(read[0][0]), read[0][0].device
        valid = torch.ones(tokens, dtype=torch.bool, device=device)
        products = matmul_dtype(device)
        if self.options.trajectory_weight:
            labels = torch.full((tokens,), NOT_SCORED, device=device)
            sums = [
                distillation_sums(
                    state, head, wanted, self._teacher[1], labels, valid, 1.0, 1.0, 0.0, self.chunk_tokens, products
                ).loss
                for state, wanted in read[:-1]
            ]
            yield Value("trajectory_kl_nats", self.options.trajectory_weight, torch.stack(sums).mean() / tokens)
        if self.options.dynamics_weight:
            sums = []
            for (before, wanted_before), (after, wanted_after) in pairwise(read):
                layers, wanted = torch.stack([before, after], 1), torch.stack([wanted_before, wanted_after], 1)
                sums.append(dynamics_sums(layers, head, wanted, self._teacher[1], valid, self.chunk_tokens, products))
            yield Value("dynamics_error", self.options.dynamics_weight, torch.stack(sums).mean() / tokens)

    def share(self, done: int, off: bool) -> float:
        """As `dynamics_share`."""
        return dynamics_share(self.options, done, off)

    def _student(self, seen: Seen, number: int) -> Float[Tensor, "tokens width"]:
        last = seen.found.last_hidden_state
        # Whoever runs the student gives it.
        assert last is not None
        state: Tensor = last if number == self.depths.student else seen.student.model.norm(seen.state(number))
        return state.to(last.dtype).flatten(0, 1)

    @torch.no_grad()
    def _teacher_state(self, seen: Seen, number: int) -> Float[Tensor, "tokens teacher_width"]:
        last = seen.teacher_last
        state: Tensor = last if number == self.depths.teacher else self._teacher[0](seen.teacher[number])
        return state.to(last.dtype).flatten(0, 1)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
