"""How alike a student's insides are to its teacher's hidden states: debiased CKA from moments added up row by row.

All states are normalized token by token, and the first token of each row is left out: one massive activation there
would decide a linear CKA alone.
"""

from collections.abc import Iterator

from jaxtyping import Float, Float64
from torch import Tensor

from asnn_goose.evaluation.layer_targets import LayerTargets
from asnn_goose.evaluation.observation import Observation
from asnn_goose.evaluation.site_information import SPIKE_CONTROLS, TEACHER_SHUFFLE
from asnn_goose.evaluation.site_probe import SAME_INPUTS, TIME_SHIFT
from asnn_goose.evaluation.teacher_targets import FIRST_COUNTED
from asnn_goose.information.cka import CrossMoments, SelfMoments, cka_from_moments, normalized_tokens
from asnn_goose.information.controls import shift_in_time, shuffle_in_time
from asnn_goose.validation_results import Compared, MatchedSimilarity, Representation

WRITES: tuple[Compared, ...] = ("k", "v")
"""Sites whose spikes are what a block writes into its state."""
Inside = tuple[Compared, int, Tensor, int]
"""What it is, its block, itself, and the teacher's state that it stands for."""


class _Compared:
    """Moments of one inside of the student, as it is or under a control, with one state of the teacher."""

    def __init__(self, x: Tensor, y: Tensor, own: SelfMoments | None = None) -> None:
        self.shares = own is not None
        self.own = SelfMoments(x.shape[-1], x.device) if own is None else own
        self.cross = CrossMoments(x.shape[-1], y.shape[-1], x.device)

    def add(self, x: Float64[Tensor, "rows time width"], y: Float64[Tensor, "rows time other_width"]) -> None:
        """Take in whole rows of both."""
        if not self.shares:
            self.own.add(x)
        self.cross.add(x, y)


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
        self._matched: dict[tuple[Compared, int, int], dict[str, _Compared]] = {}
        self._matrix: dict[tuple[int, int], CrossMoments] = {}
        self._outputs: dict[int, SelfMoments] = {}

    def add(self, seen: Observation, first_row: int) -> None:
        """Take in whole rows, of which `first_row` is the first one's index in the text."""
        taught = [_counted(hidden) for hidden in seen.teacher_hidden]
        for state, hidden in enumerate(taught):
            self._teacher.setdefault(state, SelfMoments(hidden.shape[-1], hidden.device)).add(hidden)
        for what, block, inside, state in self._insides(seen):
            views = self._matched.setdefault((what, block, state), {})
            for name, (x, y) in self._views(inside, taught[state], first_row).items():
                if name not in views:
                    views[name] = _Compared(x, y, views[""].own if name in SAME_INPUTS else None)
                views[name].add(x, y)
        if self._plain:
            return
        for block, output in enumerate(seen.block_outputs):
            made = _counted(output)
            self._outputs.setdefault(block, SelfMoments(made.shape[-1], made.device)).add(made)
            for state, hidden in enumerate(taught):
                fresh = CrossMoments(made.shape[-1], hidden.shape[-1], made.device)
                self._matrix.setdefault((block, state), fresh).add(made, hidden)

    def summary(self) -> Representation:
        """What matches, with its controls, and the matrix of blocks and states."""
        matched = [
            MatchedSimilarity(
                layer=block,
                teacher_layer=state - 1,
                what=what,
                cka=self._cka(views[""], state),
                controls={name: self._cka(view, state) for name, view in views.items() if name},
            )
            for (what, block, state), views in self._matched.items()
        ]
        matrix = tuple(
            tuple(
                cka_from_moments(self._matrix[block, state], self._outputs[block], self._teacher[state])
                for state in sorted(self._teacher)
            )
            for block in sorted(self._outputs)
        )
        return Representation(block_outputs=matrix, matched=tuple(matched))

    def _insides(self, seen: Observation) -> Iterator[Inside]:
        for block, made in self._layers.made.items():
            yield "block_output", block, seen.block_outputs[block], made
            if block in seen.states:
                yield "state", block, seen.states[block], made
            for write in WRITES:
                if (block, write) in seen.sites:
                    yield write, block, seen.sites[block, write].spikes, self._layers.given[block]

    def _views(
        self, inside: Float[Tensor, "rows time width"], taught: Float64[Tensor, "rows counted other"], first_row: int
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """By control, "" for none: what is compared with what."""
        views = {"": (_counted(inside), taught)}
        if not self._plain:
            for name, control in SPIKE_CONTROLS.items():
                if name not in SAME_INPUTS:
                    views[name] = (_counted(control(inside, self._seed, first_row)), taught)
            # The teacher's own moments do not know the order of tokens within a row.
            views[TIME_SHIFT] = (views[""][0], shift_in_time(taught, self._seed, first_row))
            views[TEACHER_SHUFFLE] = (views[""][0], shuffle_in_time(taught, self._seed, first_row))
        return views

    def _cka(self, compared: _Compared, state: int) -> float:
        return cka_from_moments(compared.cross, compared.own, self._teacher[state])


def _counted(inside: Float[Tensor, "rows time width"]) -> Float64[Tensor, "rows counted width"]:
    return normalized_tokens(inside[:, FIRST_COUNTED:])
