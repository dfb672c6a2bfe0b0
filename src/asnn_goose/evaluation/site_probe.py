"""What all channels of a site together prove to know of the teacher: a probe fitted to some rows, judged on others."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from asnn_goose.checks import quotient
from asnn_goose.evaluation.observation import SiteObservation
from asnn_goose.evaluation.site_information import SPIKE_CONTROLS, TEACHER_SHUFFLE
from asnn_goose.evaluation.teacher_targets import FIRST_COUNTED, TeacherTargets
from asnn_goose.information.controls import shift_in_time, shuffle_in_time
from asnn_goose.information.mutual_information import entropy_bits
from asnn_goose.information.probe import HeldOutBound, RidgeMoments
from asnn_goose.validation_results import SiteProbe

SPIKES, PREACTIVATIONS = "spikes", "preactivations"
TIME_SHIFT = "time_shift"
SAME_INPUTS = frozenset({TIME_SHIFT, TEACHER_SHUFFLE})
"""Controls that leave spikes alone: turning the teacher's rows is turning those of the spikes the other way."""
Inputs = Mapping[str, tuple[Tensor, Tensor]]
"""By what is done to them: inputs and targets of a probe."""


class ProbeEvidence:
    """One probe on spikes, one on pre-activations and one on each control, on the same rows.

    Args:
        width: Channels of the site.
        targets: What is predicted: the bins of the teacher's principal components.
        fitted_rows: First rows, to which probes are fitted; they are judged on all that follow.
        seed: Of the controls.
        plain: Whether only the probe on spikes is wanted.
    """

    def __init__(self, width: int, targets: TeacherTargets, fitted_rows: int, seed: int, plain: bool = False) -> None:
        self._targets, self._fitted_rows, self._seed, self._plain = targets, fitted_rows, seed, plain
        names = (SPIKES,) if plain else (SPIKES, PREACTIVATIONS, *SPIKE_CONTROLS, TEACHER_SHUFFLE)
        components, device = targets.directions.shape[1], targets.borders.device
        self._moments = {name: RidgeMoments(width, components, device) for name in names}
        for name in SAME_INPUTS & set(names):
            # What is shuffled there is what is predicted.
            self._moments[name] = RidgeMoments(width, components, device, self._moments[SPIKES].inputs)
        self._bounds: dict[str, HeldOutBound] = {}
        bins = targets.borders.shape[1] + 1
        self._targets_met = torch.zeros(components, bins, dtype=torch.int64, device=device)

    def add(self, seen: SiteObservation, scores: Float64[Tensor, "rows counted components"], first_row: int) -> None:
        """Take in whole rows in their order, whatever batches they come in."""
        fitted = max(0, min(len(scores), self._fitted_rows - first_row))
        parts = self._inputs(seen, scores, first_row)
        for name, (inputs, wanted) in parts.items():
            if fitted:
                self._moments[name].add(inputs[:fitted], wanted[:fitted], whole=name != PREACTIVATIONS)
            if fitted < len(scores):
                if name not in self._bounds:
                    self._bounds[name] = HeldOutBound(self._moments[name].solve(), self._targets.borders)
                self._bounds[name].add(inputs[fitted:], wanted[fitted:])
        if fitted < len(scores):
            codes = self._targets.codes(scores[fitted:]).flatten(0, 1)
            self._targets_met += torch.nn.functional.one_hot(codes, self._targets_met.shape[1]).sum(dim=0)

    def spikes_bits(self) -> float:
        """Mean over components of what the probe on spikes proves."""
        return float(self._bounds[SPIKES].bits().mean())

    def summary(self, layer: int, site: str, state: int) -> SiteProbe:
        """The site's figures beside the state it was asked about, without the untrained student's and the twin's."""
        bits = {name: float(bound.bits().mean()) for name, bound in self._bounds.items()}
        after, before = bits.pop(SPIKES), bits.pop(PREACTIVATIONS)
        return SiteProbe(
            layer=layer,
            site=site,
            teacher_layer=state - 1,
            spikes_bits=after,
            preactivation_bits=before,
            kept_share=quotient(after, before) if before > 0 else None,
            target_entropy_bits=float(entropy_bits(self._targets_met, corrected=False).mean()),
            controls=dict(bits),
        )

    def _inputs(
        self, seen: SiteObservation, scores: Float64[Tensor, "rows counted components"], first_row: int
    ) -> Inputs:
        parts = {SPIKES: (_counted(seen.spikes), scores)}
        if self._plain:
            return parts
        parts[PREACTIVATIONS] = (_counted(seen.preactivations), scores)
        for name, control in SPIKE_CONTROLS.items():
            if name not in SAME_INPUTS:
                parts[name] = (_counted(control(seen.spikes, self._seed, first_row)), scores)
        parts[TIME_SHIFT] = (parts[SPIKES][0], shift_in_time(scores, self._seed, first_row))
        parts[TEACHER_SHUFFLE] = (parts[SPIKES][0], shuffle_in_time(scores, self._seed, first_row))
        return parts


def _counted(given: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows counted width"]:
    return given[:, FIRST_COUNTED:]
