"""Which of the teacher's hidden states each inside of a student stands for.

States are numbered as in `config_features`: 0 is the embeddings' output, i the output of block i - 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from asnn_goose.errors import ConfigError
from asnn_goose.objectives.layer_maps import uniform_states

OUTPUT_SITES = frozenset({"mixer_out", "ffn_in", "ffn_mid", "head_in"})
"""Sites behind a block's recurrence, which know what it read; the others see what the block is given."""
HEAD_SITE = "head_in"


@dataclass(frozen=True)
class LayerTargets:
    """The state that each block is given, and the one it gives.

    Attributes:
        given: By the student's block, the state that its input stands for, as what it writes does.
        made: The state that its output stands for, as what it reads from its recurrent state does.
    """

    given: Mapping[int, int]
    made: Mapping[int, int]

    def state_of(self, block: int, site: str) -> int:
        """The state that a site is asked about; the head's input, behind the last block, is the last one made."""
        if site == HEAD_SITE:
            return self.made[max(self.made)]
        return self.made[block] if site in OUTPUT_SITES else self.given[block]

    def covers(self, block: int, site: str) -> bool:
        """Whether a site is looked at."""
        return site == HEAD_SITE or block in self.made


def layer_targets(student_blocks: int, teacher_blocks: int, layer_map: Mapping[int, int] | None = None) -> LayerTargets:
    """By the depths of both, or for the blocks alone that a map names.

    Args:
        student_blocks: Blocks of the student.
        teacher_blocks: Blocks of the teacher.
        layer_map: By the student's block, the teacher's block whose output its own stands for, both from 0; None is
            state round((i + 1) L_t / L_s) for all.

    Raises:
        ConfigError: The map is empty or names a block that is not there.
    """
    uniform = (0, *uniform_states(student_blocks, teacher_blocks))
    if layer_map is None:
        blocks = range(student_blocks)
        return LayerTargets(
            {block: uniform[block] for block in blocks}, {block: uniform[block + 1] for block in blocks}
        )
    for block, taught in layer_map.items():
        if not 0 <= block < student_blocks or not 0 <= taught < teacher_blocks:
            raise ConfigError(
                f"layer_map has {block}: {taught}; expected a block of the student, 0 to {student_blocks - 1}, and one "
                f"of the teacher, 0 to {teacher_blocks - 1}"
            )
    if not layer_map:
        raise ConfigError("layer_map names no block; leave it out to compare all")
    made = {block: taught + 1 for block, taught in layer_map.items()}
    return LayerTargets({block: min(uniform[block], state - 1) for block, state in made.items()}, made)
