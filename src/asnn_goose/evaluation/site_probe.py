"""What all channels of a site together prove to know of the teacher: a probe fitted to some rows, judged on others."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from asnn_goose.checks import quotient
from asnn_goose.evaluation.observation import SiteObservation
from asnn_goose.evaluation.site_information import SPIKE_CONTROLS, TEACHER_SHUFFLE
from asnn_goose.evaluation.teacher_targets import FIRST_COUNTED, TeacherTargets
from asnn_goose.information.controls import shift_in_time, shuffle_in_time
from asnn_goose.information.probe import HeldOutBound, RidgeMoments
from asnn_goose.validation_results import SiteProbe

SPIKES, PREACTIVATIONS = "spikes", "preactivations"
TIME_SHIFT = "time_shift"
SAME_INPUTS = (TIME_SHIFT, TEACHER_SHUFFLE)
"""Controls that leave spikes alone: turning the teacher's rows is turning those of the spikes the other way."""


class ProbeEvidence:
    """One probe on spikes, one on pre-activations and one on each control, on the same rows.

    Probes of one input are solved together: those of `SAME_INPUTS` have further targets of the probe on spikes.

    Args:
        width: Channels of the site.
        targets: What is predicted: the bins of the teacher's principal components.
        fitted_rows: First rows, to which probes are fitted; they are judged on all that follow.
        seed: Of the controls.
        plain: Whether only the probe on spikes is wanted.
    """

    def __init__(self, width: int, targets: TeacherTargets, fitted_rows: int, seed: int, plain: bool = False) -> None:
        self._targets, self._fitted_rows, self._seed, self._plain = targets, fitted_rows, seed, plain
        components, device = targets.directions.shape[1], targets.borders.device
        together = 1 if plain else 1 + len(SAME_INPUTS)
        self._moments = {SPIKES: RidgeMoments(width, together * components, device)}
        if not plain:
            others = (PREACTIVATIONS, *(name for name in SPIKE_CONTROLS if name not in SAME_INPUTS))
            self._moments |= {name: RidgeMoments(width, components, device) for name in others}
        self._bounds: dict[str, HeldOutBound] = {}

    def add(self, seen: SiteObservation, scores: Float64[Tensor, "rows counted components"], first_row: int) -> None:
        """Take in whole rows in their order, whatever batches they come in."""
        fitted = max(0, min(len(scores), self._fitted_rows - first_row))
        for name, inputs, wanted in self._parts(seen, scores, first_row):
            if fitted:
                self._moments[name].add(inputs[:fitted], wanted[:fitted], whole=name != PREACTIVATIONS)
            if fitted < len(scores):
                if name not in self._bounds:
                    again = wanted.shape[-1] // scores.shape[-1]
                    borders = self._targets.borders.repeat(again, 1)
                    self._bounds[name] = HeldOutBound(self._moments.pop(name).solve(), borders)
                self._bounds[name].add(inputs[fitted:], wanted[fitted:])

    def spikes_bits(self) -> float:
        """Mean over components of what the probe on spikes proves."""
        return self._bits()[SPIKES]

    def summary(self, layer: int, site: str, state: int) -> SiteProbe:
        """The site's figures beside the state it was asked about, without the untrained student's and the twin's."""
        bits = self._bits()
        after, before = bits.pop(SPIKES), bits.pop(PREACTIVATIONS)
        return SiteProbe(
            layer=layer,
            site=site,
            teacher_layer=state - 1,
            spikes_bits=after,
            preactivation_bits=before,
            kept_share=quotient(after, before) if before > 0 else None,
            target_entropy_bits=float(self._bounds[PREACTIVATIONS].entropy_bits().mean()),
            controls=dict(bits),
        )

    def _bits(self) -> dict[str, float]:
        """By probe, the mean over components of what it proves."""
        bits = {name: bound.bits() for name, bound in self._bounds.items()}
        if not self._plain:
            together = bits[SPIKES].view(1 + len(SAME_INPUTS), -1)
            bits |= dict(zip((SPIKES, *SAME_INPUTS), together, strict=True))
        return {name: float(found.mean()) for name, found in bits.items()}

    def _parts(
        self, seen: SiteObservation, scores: Float64[Tensor, "rows counted components"], first_row: int
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Of each probe its name, inputs and targets."""
        if self._plain:
            yield SPIKES, _counted(seen.spikes), scores
            return
        moved = shift_in_time(scores, self._seed, first_row), shuffle_in_time(scores, self._seed, first_row)
        yield SPIKES, _counted(seen.spikes), torch.cat((scores, *moved), dim=-1)
        yield PREACTIVATIONS, _counted(seen.preactivations), scores
        for name, control in SPIKE_CONTROLS.items():
            if name not in SAME_INPUTS:
                yield name, _counted(control(seen.spikes, self._seed, first_row)), scores


def _counted(given: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows counted width"]:
    return given[:, FIRST_COUNTED:]
