"""Which of the teacher's layers each of the student's is compared with: rules in the depths of both.

States are numbered as in `config_features`: 0 is the embeddings' output, i the output of block i - 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from asnn_goose.config_features import (
    BlockMap,
    GivenMap,
    HiddenAlignment,
    LastMap,
    LearnedMap,
    SkipMap,
    UniformMap,
)
from asnn_goose.errors import ConfigError

MOST_PAIRS = 3
"""Pairs that `depth_pairs` makes."""
LEAST_TEACHER_BLOCKS = 3
"""Fewer have no block number 2, where its pairs begin."""

KEY = "objective.hidden_alignment"


@dataclass(frozen=True)
class Depths:
    """How deep both models are.

    Attributes:
        student: The student's blocks.
        teacher: The teacher's.
        kept: The teacher's blocks at which the stretches begin that the student's stand for; None where they stand for
            none.
    """

    student: int
    teacher: int
    kept: tuple[int, ...] | None = None


class StatePair(NamedTuple):
    """A state of the student and the one of the teacher that it follows; of several, their learned mean."""

    student: int
    teacher: tuple[int, ...]


def alignment_pairs(alignment: HiddenAlignment, depths: Depths) -> tuple[StatePair, ...]:
    """The states that hidden alignment compares, first to last.

    Raises:
        ConfigError: The map leads out of the teacher, or does not fit the student.
    """
    pairs = list(_mapped(alignment, depths))
    if alignment.embeddings:
        pairs.insert(0, StatePair(0, (0,)))
    weights = alignment.layer_weights
    if weights is not None and len(weights) != len(pairs):
        raise ConfigError(f"{KEY}.layer_weights has {len(weights)} weights for {len(pairs)} compared states")
    return tuple(pairs)


def _mapped(alignment: HiddenAlignment, depths: Depths) -> Sequence[StatePair]:
    blocks = range(1, depths.student + 1)
    match alignment.layer_map:
        case BlockMap():
            # Recipes say so already.
            assert depths.kept is not None
            states = (*depths.kept[1:], depths.teacher)
        case UniformMap():
            states = uniform_states(depths.student, depths.teacher)
        case SkipMap(every=every):
            states = skipped_states(depths, every)
        case LastMap(count=count):
            number = depths.student if count is None else count
            if number > min(depths.student, depths.teacher):
                raise ConfigError(
                    f"{KEY}.layer_map.kind=last takes {number} blocks, but student and teacher have {depths.student} "
                    f"and {depths.teacher}: give count={min(depths.student, depths.teacher)} or fewer"
                )
            pairs = zip(blocks[-number:], range(depths.teacher - number + 1, depths.teacher + 1), strict=True)
            return [StatePair(student, (teacher,)) for student, teacher in pairs]
        case GivenMap(states=states):
            if len(states) != depths.student or max(states) > depths.teacher:
                raise ConfigError(
                    f"{KEY}.layer_map.states={list(states)}: give one state for each of the student's {depths.student} "
                    f"blocks, from 0 (the embeddings' output) to {depths.teacher}"
                )
        case LearnedMap():
            every_output = tuple(range(1, depths.teacher + 1))
            return [StatePair(block, every_output) for block in blocks]
    return [StatePair(block, (state,)) for block, state in zip(blocks, states, strict=True)]


def uniform_states(student_blocks: int, teacher_blocks: int) -> tuple[int, ...]:
    """State round((i + 1) * L_t / L_s) for block i, ties to even: [2, 5, 7, 10, 12] for 5 blocks of 12.

    At least 1, so that no block of a deeper student follows the embeddings.
    """
    return tuple(max(1, round((block + 1) * teacher_blocks / student_blocks)) for block in range(student_blocks))


def skipped_states(depths: Depths, every: int | None) -> tuple[int, ...]:
    """State (i + 1) * every for block i.

    Raises:
        ConfigError: That is beyond the teacher's last.
    """
    step = depths.teacher // depths.student if every is None else every
    if not 0 < step * depths.student <= depths.teacher:
        most = depths.teacher // depths.student
        way = f"give every={most} or less" if most else "give kind=uniform"
        raise ConfigError(
            f"{KEY}.layer_map.kind=skip with every={step} leads {depths.student} blocks to state "
            f"{step * depths.student}, but the teacher has {depths.teacher} blocks: {way}"
        )
    return tuple(step * (block + 1) for block in range(depths.student))


def depth_pairs(student_blocks: int, teacher_blocks: int, key: str) -> tuple[tuple[int, int], ...]:
    """Up to three blocks of the student, first to last, each with one of the teacher's, as recorded.

    s = floor(i (L_s - 1) / (n - 1)) for i < n = min(3, L_s), and t = floor(s / (L_s - 1) (L_t - 1)) + 2, within 2 and
    L_t - 1. A student of one block pairs it with block 2. `key` is the section of the recipe that asks.

    Raises:
        ConfigError: The teacher has no block number 2.
    """
    if teacher_blocks < LEAST_TEACHER_BLOCKS:
        raise ConfigError(
            f"{key}.pairs=null needs a teacher of at least {LEAST_TEACHER_BLOCKS} blocks, got {teacher_blocks}: give "
            "[[student's block, teacher's block], ...], both from 0"
        )
    number, last = min(MOST_PAIRS, student_blocks), student_blocks - 1
    students = [place * last // (number - 1) for place in range(number)] if last else [0]
    # Whole numbers: the quotient s / (L_s - 1) of the record may fall below a whole product by a rounding.
    found = [block * (teacher_blocks - 1) // last + 2 if last else 2 for block in students]
    return tuple((s, max(2, min(t, teacher_blocks - 1))) for s, t in zip(students, found, strict=True))


def chosen_pairs(pairs: Sequence[tuple[int, int]] | None, depths: Depths, key: str) -> tuple[tuple[int, int], ...]:
    """Pairs of blocks as a recipe gives them at `key`, or by depth.

    Raises:
        ConfigError: There is no pair, or no such block.
    """
    if pairs is None:
        return depth_pairs(depths.student, depths.teacher, key)
    if not pairs:
        raise ConfigError(f"{key}.pairs is empty: give [[student's block, teacher's block], ...] from 0, or null")
    for student, teacher in pairs:
        if student >= depths.student or teacher >= depths.teacher:
            raise ConfigError(
                f"{key}.pairs names the blocks [{student}, {teacher}]: the student's go from 0 to "
                f"{depths.student - 1}, the teacher's to {depths.teacher - 1}"
            )
    return tuple(pairs)


def reading_states(layers: int, depths: Depths) -> tuple[tuple[int, int], ...]:
    """States at equal shares of depth, the last ones among them, as (student's, teacher's).

    Raises:
        ConfigError: One of the models has a single block.
    """
    number = min(layers, depths.student, depths.teacher)
    if number < 2:
        raise ConfigError(
            "objective.feature_dynamics.kind=prediction needs two blocks of each model, student and teacher have "
            f"{depths.student} and {depths.teacher}: give kind=cka, or drop it"
        )
    return tuple(
        (round(place * depths.student / number), round(place * depths.teacher / number))
        for place in range(1, number + 1)
    )
