"""What is looked at when spikes are validated: one batch of a student's and its teacher's insides, token by token.

Position t of everything stands for the same token: what the student computed when it read token t, and what the teacher
had made of it by then.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

Place = tuple[int, str]
"""Where spikes are made: block and site, such as (0, "k"); the head's input is behind the last block."""


@dataclass(frozen=True, eq=False)
class SiteObservation:
    """A site's spikes, and what they were made of.

    Attributes:
        spikes: Integers in -D to D.
        preactivations: The activation in units of its token's quantization step (z = x / step): the staircase makes
            `spikes` of it.
    """

    spikes: Float[Tensor, "batch time width"]
    preactivations: Float[Tensor, "batch time width"]


@dataclass(frozen=True, eq=False)
class Observation:
    """A batch of whole rows.

    Attributes:
        sites: By block and site, such as (0, "k").
        states: What each block reads from its recurrent state after the token was written into it.
        block_outputs: The residual stream behind each block of the student.
        teacher_hidden: The residual stream of the teacher, before its first block and behind each one.
    """

    sites: Mapping[Place, SiteObservation]
    states: Mapping[int, Float[Tensor, "batch time read"]]
    block_outputs: tuple[Float[Tensor, "batch time width"], ...]
    teacher_hidden: tuple[Float[Tensor, "batch time teacher_width"], ...]

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.teacher_hidden[0])
