"""What every term on hidden states sees of a micro-batch, and what it gives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from asnn_goose.models.student import GooseForCausalLM, GooseOutput


@dataclass(frozen=True)
class Seen:
    """Both models on a micro-batch.

    Attributes:
        student: The model that learns.
        found: What its body returned, its hidden states with it.
        teacher: The teacher's states that were asked for, by number.
        teacher_last: What the teacher's head reads.
    """

    student: GooseForCausalLM
    found: GooseOutput
    teacher: Mapping[int, Float[Tensor, "batch time teacher_width"]]
    teacher_last: Float[Tensor, "batch time read_width"]

    def state(self, number: int) -> Float[Tensor, "batch time width"]:
        """A state of the student; 0 is the embeddings' output."""
        # Whoever runs the student for these terms asks for its states.
        assert self.found.hidden_states is not None
        return self.found.hidden_states[number]


class Value(NamedTuple):
    """A term's value, a mean over tokens, with the name that the log gives it and its weight at full size."""

    name: str
    weight: float | Tensor
    value: Float[Tensor, ""]


class Term(Protocol):
    """One term of the objective on hidden states."""

    states: frozenset[int]
    """The teacher's states that it needs."""

    def of(self, seen: Seen) -> Iterator[Value]:
        """Its values on a micro-batch."""

    def share(self, done: int, off: bool) -> float:
        """Share of its weight that counts after `done` steps of the stage, given whether dynamics are off for good."""


def matmul_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast gives matrix products at present; None without it."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
