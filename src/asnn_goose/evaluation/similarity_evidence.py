"""How alike a student's insides are to its teacher's hidden states: debiased CKA from moments added up row by row.

All states are normalized token by token, and the first token of each row is left out: one massive activation there
would decide a linear CKA alone.
"""

from collections.abc import Callable, Iterator
from functools import partial

from jaxtyping import Float, Float64
from torch import Tensor

from asnn_goose.evaluation.layer_targets import LayerTargets
from asnn_goose.evaluation.observation import Observation
from asnn_goose.evaluation.site_information import SPIKE_CONTROLS, TEACHER_SHUFFLE
from asnn_goose.evaluation.site_probe import SAME_INPUTS, TIME_SHIFT
from asnn_goose.evaluation.teacher_targets import FIRST_COUNTED
from asnn_goose.information.cka import (
    CrossMoments,
    SelfMoments,
    cka_from_moments,
    moment_columns,
    normalized_tokens,
)
from asnn_goose.information.controls import shift_in_time, shuffle_in_time
from asnn_goose.validation_results import Compared, MatchedSimilarity, Representation

WRITES: tuple[Compared, ...] = ("k", "v")
"""Sites whose spikes are what a block writes into its state."""
UNTOUCHED = ""
"""In place of a control's name: none."""
OWN_CONTROLS = tuple(name for name in SPIKE_CONTROLS if name not in SAME_INPUTS)
"""Controls that make another inside of an inside; the others move the teacher's tokens."""
Inside = tuple[Compared, int, str]
"""What it is, its block, and what is done to it."""
Taught = tuple[int, str]
"""A state of the teacher, and what is done to it."""
TaughtColumns = dict[Taught, Tensor]
"""`moment_columns` of each, [rows counted columns]."""


class SimilarityEvidence:
    """All that is compared by CKA.

    Args:
        layers: Which of the teacher's states each block's insides stand for.
        seed: Of the controls.
        plain: Whether controls and the matrix of all blocks with all states are left out.
    """

    def __init__(self, layers: LayerTargets, seed: int, plain: bool = False) -> None:
        self._layers, self._seed, self._plain = layers, seed, plain
        self._teacher: dict[int, SelfMoments] = {}
        self._own: dict[Inside, SelfMoments] = {}
        self._both: dict[tuple[Inside, Taught], CrossMoments] = {}

    def add(self, seen: Observation, first_row: int) -> None:
        """Take in whole rows, of which `first_row` is the first one's index in the text."""
        for task in self.tasks(seen, first_row):
            task()

    def tasks(self, seen: Observation, first_row: int) -> list[Callable[[], None]]:
        """What `add` does, as tasks that may run in any order and side by side."""
        taught = self._taught(seen, first_row)
        return [partial(self._add_inside, inside, given, taught, first_row) for inside, given in self._insides(seen)]

    def summary(self) -> Representation:
        """What matches, with its controls, and the matrix of blocks and states."""
        untouched = sorted(inside for inside in self._own if inside[2] == UNTOUCHED)
        matched = [
            MatchedSimilarity(
                layer=inside[1],
                teacher_layer=self._state_of(inside) - 1,
                what=inside[0],
                cka=self._cka(inside, (self._state_of(inside), UNTOUCHED)),
                controls=self._controls(inside),
            )
            for inside in untouched
            if self._is_matched(inside)
        ]
        outputs = [inside for inside in untouched if inside[0] == "block_output" and not self._plain]
        matrix = tuple(
            tuple(self._cka(output, (state, UNTOUCHED)) for state in sorted(self._teacher)) for output in outputs
        )
        return Representation(block_outputs=matrix, matched=tuple(matched))

    def _taught(self, seen: Observation, first_row: int) -> TaughtColumns:
        """Columns of each state of the teacher, whose own moments do not know the order of tokens within a row."""
        taught = {(state, UNTOUCHED): _columns(hidden) for state, hidden in enumerate(seen.teacher_hidden)}
        for (state, _), y in taught.items():
            if state not in self._teacher:
                self._teacher[state] = SelfMoments(_width(y), y.device)
            self._teacher[state].add_columns(y)
        if not self._plain:
            for state in {*self._layers.given.values(), *self._layers.made.values()}:
                y = taught[state, UNTOUCHED]
                taught[state, TIME_SHIFT] = shift_in_time(y, self._seed, first_row)
                taught[state, TEACHER_SHUFFLE] = shuffle_in_time(y, self._seed, first_row)
        return taught

    def _insides(self, seen: Observation) -> Iterator[tuple[Inside, Float[Tensor, "rows time width"]]]:
        for block, output in enumerate(seen.block_outputs):
            if block in self._layers.made or not self._plain:
                yield ("block_output", block, UNTOUCHED), output
        for block in self._layers.made:
            if block in seen.states:
                yield ("state", block, UNTOUCHED), seen.states[block]
            for write in WRITES:
                if (block, write) in seen.sites:
                    yield (write, block, UNTOUCHED), seen.sites[block, write].spikes

    def _add_inside(
        self, inside: Inside, given: Float[Tensor, "rows time width"], taught: TaughtColumns, first_row: int
    ) -> None:
        """Take in an inside, and what its own controls make of it."""
        what, block, _ = inside
        self._compare(inside, _columns(given), taught)
        if not self._plain and self._is_matched(inside):
            for control in OWN_CONTROLS:
                made = SPIKE_CONTROLS[control](given, self._seed, first_row)
                self._compare((what, block, control), _columns(made), taught)

    def _compare(self, inside: Inside, x: Float64[Tensor, "rows counted columns"], taught: TaughtColumns) -> None:
        """Take in an inside beside each state of the teacher that it is compared with."""
        what, _, control = inside
        if inside not in self._own:
            self._own[inside] = SelfMoments(_width(x), x.device)
        self._own[inside].add_columns(x)
        for partner, y in taught.items():
            state, moved = partner
            matches = self._is_matched(inside) and state == self._state_of(inside) and not (control and moved)
            in_matrix = what == "block_output" and not (control or moved or self._plain)
            if matches or in_matrix:
                if (inside, partner) not in self._both:
                    self._both[inside, partner] = CrossMoments(_width(x), _width(y), x.device)
                self._both[inside, partner].add_columns(x, y)

    def _is_matched(self, inside: Inside) -> bool:
        """Whether the inside's block is looked at: the matrix has all."""
        return inside[1] in self._layers.made

    def _state_of(self, inside: Inside) -> int:
        """The teacher's state that the inside stands for."""
        what, block, _ = inside
        return self._layers.given[block] if what in WRITES else self._layers.made[block]

    def _controls(self, inside: Inside) -> dict[str, float | None]:
        if self._plain:
            return {}
        what, block, _ = inside
        state = self._state_of(inside)
        moved: dict[str, float | None] = {name: self._cka(inside, (state, name)) for name in SAME_INPUTS}
        return moved | {name: self._cka((what, block, name), (state, UNTOUCHED)) for name in OWN_CONTROLS}

    def _cka(self, inside: Inside, taught: Taught) -> float:
        return cka_from_moments(self._both[inside, taught], self._own[inside], self._teacher[taught[0]])


def _columns(inside: Float[Tensor, "rows time width"]) -> Float64[Tensor, "rows counted columns"]:
    return moment_columns(normalized_tokens(inside[:, FIRST_COUNTED:]))


def _width(columns: Float64[Tensor, "rows counted columns"]) -> int:
    """The most channels that `moment_columns` of so many columns have."""
    return columns.shape[-1] - 2
