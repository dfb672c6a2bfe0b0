"""Which rows are open at a step: rows from easy to hard, and phases that each draw from a stretch of them.

A phase is a run of steps that draw from the same rows. Row number n of a phase with K open rows is the one at place
n % K of the permutation of its epoch n // K, so that the number of rows seen stays the only state; since that number
tells the step, all micro-batches and processes of a step are of one phase.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np
from jaxtyping import Int64

from asnn_goose.config_curriculum import ExponentialPacing, LinearPacing, StepPacing
from asnn_goose.data.shuffling import shuffled_places

OF_PHASES = 2
"""Marks the seeds of phases among those drawn from a run's seed."""
LEVELS = 100
"""A share that grows does so in so many levels: rows of one level are visited in turn, not drawn anew each step."""

Pacing = StepPacing | LinearPacing | ExponentialPacing


@dataclass(frozen=True)
class Phase:
    """Steps from `first_step` on draw from the places `start` to `stop` of the order of difficulty."""

    first_step: int
    start: int
    stop: int


def pacing_phases(pacing: Pacing, steps: int, rows: int) -> tuple[Phase, ...]:
    """The phases of a run of so many steps over so many rows.

    Raises:
        ValueError: There are fewer rows than parts.
    """
    if isinstance(pacing, StepPacing):
        return _parts(pacing, steps, rows)
    shares = (_open_share(pacing, step / (pacing.until * steps)) for step in range(steps))
    return _joined((step, max(1, int(round(share * rows, 6)))) for step, share in enumerate(shares))


def part_ends(pacing: StepPacing, steps: int) -> tuple[int, ...]:
    """The steps after which the parts of a run end; the last is the run's end."""
    durations = pacing.durations or (1.0,) * pacing.parts
    # Rounded before it is rounded: a third of 4.5 is 1.5, whichever way the sum went.
    return tuple(round(round(done / sum(durations) * steps, 6)) for done in accumulate(durations))


def _parts(pacing: StepPacing, steps: int, rows: int) -> tuple[Phase, ...]:
    if rows < pacing.parts:
        raise ValueError(f"{rows} rows make no {pacing.parts} parts: give curriculum.batches more, or fewer parts")
    borders = [rows * part // pacing.parts for part in range(pacing.parts + 1)]
    begins = (0, *part_ends(pacing, steps)[:-1])
    disjoint = pacing.subsets == "disjoint"
    return tuple(
        Phase(begin, easiest if disjoint else 0, hardest)
        for begin, (easiest, hardest) in zip(begins, pairwise(borders), strict=True)
    )


def _open_share(pacing: LinearPacing | ExponentialPacing, progress: float) -> float:
    progress = min(progress, 1.0)
    linear = pacing.start + (1.0 - pacing.start) * progress
    share = linear if isinstance(pacing, LinearPacing) else pacing.start ** (1.0 - progress)
    return -(-round(share * LEVELS, 6) // 1) / LEVELS


def _joined(opened: Iterable[tuple[int, int]]) -> tuple[Phase, ...]:
    phases: list[Phase] = []
    for step, rows in opened:
        if not phases or phases[-1].stop != rows:
            phases.append(Phase(step, 0, rows))
    return tuple(phases)


@dataclass(frozen=True, eq=False)
class Course:
    """The rows of a run by difficulty, and which of them are open when.

    Raises:
        ValueError: There is no phase from the first step on, or one without rows.
    """

    order: Int64[np.ndarray, " rows"]
    """Rows by their place in the text, the easiest first; none twice."""
    phases: Sequence[Phase]
    """In the order of their steps."""
    seed: int
    """Seed of every phase's permutations."""
    first_step: int = 0
    """Step of the run with which the rows counted begin: that of a stage's start."""
    rows_per_step: int = 1
    """Rows of an optimizer step, of all micro-batches and processes together."""

    def __post_init__(self) -> None:
        if not self.phases or self.phases[0].first_step != 0:
            raise ValueError("a course must have a phase that begins with step 0")
        if not all(0 <= phase.start < phase.stop <= len(self.order) for phase in self.phases):
            raise ValueError(f"every phase must open rows among the {len(self.order)} of the course")

    def of_stage(self, first_step: int, rows_per_step: int) -> "Course":
        """The same course, its rows counted from a stage's start."""
        return replace(self, first_step=first_step, rows_per_step=rows_per_step)

    def places(self, numbers: Int64[np.ndarray, " numbers"]) -> Int64[np.ndarray, " numbers"]:
        """The rows, by their place in the text, with these numbers in the sequence of the stage."""
        steps = self.first_step + numbers // self.rows_per_step
        begins = np.asarray([phase.first_step for phase in self.phases], dtype=np.int64)
        # Of phases that begin with one step, the last is the one.
        phases = np.searchsorted(begins, steps, side="right") - 1
        found = np.empty_like(numbers)
        for index in np.unique(phases).tolist():
            inside, phase = phases == index, self.phases[index]
            earlier = (self.first_step - phase.first_step) * self.rows_per_step
            seed = np.random.SeedSequence(self.seed, spawn_key=(OF_PHASES, index)).generate_state(1, np.uint64)[0]
            drawn = shuffled_places(phase.stop - phase.start, numbers[inside] + earlier, int(seed))
            found[inside] = self.order[phase.start + drawn]
        return found
