"""What single channels of a site tell of the teacher: tables of codes, added up row by row, and bits from them.

A channel's bits are those about the principal component of which it tells most. The maximum is taken in the null and in
every control too, so that having a choice is no information.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from asnn_goose.checks import quotient
from asnn_goose.config_validation import ValidationOptions
from asnn_goose.evaluation.observation import SiteObservation
from asnn_goose.evaluation.teacher_targets import FIRST_COUNTED, TeacherTargets
from asnn_goose.information.bins import bin_codes
from asnn_goose.information.controls import Control, rate_matched_noise, shift_in_time, shuffle_in_time, shuffle_signs
from asnn_goose.information.joint_counts import JointCounts, PermutedCounts, TableSizes
from asnn_goose.information.mutual_information import mutual_information_bits
from asnn_goose.information.nearest_neighbors import nearest_neighbor_bits
from asnn_goose.information.significance import compare_with_null
from asnn_goose.validation_results import NullInformation, SiteInformation

SPIKE_CONTROLS: Mapping[str, Control] = {
    "time_shift": shift_in_time,
    "sign_shuffle": shuffle_signs,
    "rate_matched_noise": rate_matched_noise,
}
"""What is done to spikes; the fourth control, `teacher_shuffle`, reorders each row of the teacher."""
TEACHER_SHUFFLE = "teacher_shuffle"
NEIGHBOR_CHANNELS = 8
"""Channels of the cross-check by distances, which takes time for each."""


class InformationCounts:
    """All tables of one site.

    Args:
        levels: Largest spike D.
        options: How many channels, bins, permutations.
        targets: What the site is asked about.
        borders: Of the bins of its pre-activations, channel by channel, which also says how many channels there are.
        channels: Indices of the channels that are looked at.
        plain: Whether only the spikes' own tables are wanted, as for the untrained student.
    """

    def __init__(
        self,
        levels: int,
        options: ValidationOptions,
        targets: TeacherTargets,
        borders: Float64[Tensor, "channels borders"],
        channels: Int64[Tensor, " channels"],
        plain: bool = False,
    ) -> None:
        self._levels, self._options, self._targets, self._plain = levels, options, targets, plain
        self._borders, self._channels = borders, channels
        codes, bins, count, device = 2 * levels + 1, options.bins, len(channels), borders.device
        spikes = TableSizes(count, options.components, codes, bins)
        values = TableSizes(count, options.components, bins, bins)
        self._spikes, self._values = JointCounts(spikes, device), JointCounts(values, device)
        self._own = torch.zeros(count, codes, bins, dtype=torch.int64, device=device)
        lags = range(-options.greatest_lag, options.greatest_lag + 1)
        self._lags = {lag: JointCounts(spikes, device) for lag in lags if lag and not plain}
        names = () if plain else (*SPIKE_CONTROLS, TEACHER_SHUFFLE)
        self._controls = {name: JointCounts(spikes, device) for name in names}
        self._null = PermutedCounts(spikes, options.permutations, options.permuted_rows, options.seed, device)
        self._kept: list[tuple[Tensor, Tensor]] = []

    def add(self, seen: SiteObservation, scores: Float64[Tensor, "rows counted components"], first_row: int) -> None:
        """Count whole rows, of which `first_row` is the first one's index in the text."""
        spikes = seen.spikes[..., self._channels]
        codes, wanted = self._codes(spikes), self._targets.codes(scores)
        self._spikes.add(codes, wanted)
        values = bin_codes(seen.preactivations[:, FIRST_COUNTED:, self._channels], self._borders)
        self._values.add(values, wanted)
        if self._plain:
            return
        self._add_own(codes, values)
        self._null.add(codes, wanted)
        for lag, counts in self._lags.items():
            # A token's spikes beside the teacher `lag` tokens before it.
            late, early = (slice(lag, None), slice(None, -lag)) if lag > 0 else (slice(None, lag), slice(-lag, None))
            counts.add(codes[:, late], wanted[:, early])
        seed = self._options.seed
        for name, control in SPIKE_CONTROLS.items():
            self._controls[name].add(self._codes(control(spikes, seed, first_row)), wanted)
        self._controls[TEACHER_SHUFFLE].add(codes, shuffle_in_time(wanted, seed, first_row))
        if sum(len(part) for part, _ in self._kept) < self._options.neighbor_tokens:
            self._kept.append((codes[..., :NEIGHBOR_CHANNELS].flatten(0, 1), scores.flatten(0, 1)))

    def spikes_bits(self) -> float:
        """Mean over channels of what spikes tell of their best component."""
        return float(best_bits(self._spikes.tables()))

    def summary(self, layer: int, site: str, state: int) -> SiteInformation:
        """The site's figures beside the state it was asked about, without the untrained student's and the twin's."""
        found, before = self.spikes_bits(), float(best_bits(self._values.tables()))
        null = compare_with_null(found, best_bits(self._null.tables()))
        lags = {lag: float(best_bits(counts.tables())) for lag, counts in self._lags.items()} | {0: found}
        return SiteInformation(
            layer=layer,
            site=site,
            teacher_layer=state - 1,
            spikes_bits=found,
            preactivation_bits=before,
            kept_share=quotient(found, before) if before > 0 else None,
            own_preactivation_bits=float(mutual_information_bits(self._own).mean()),
            null=NullInformation(
                mean_bits=null.mean,
                deviation_bits=null.deviation,
                z=null.z,
                p=null.p,
                permutations=self._options.permutations,
            ),
            lag_bits=dict(lags),
            best_lag=max(sorted(lags, key=abs), key=lambda lag: lags[lag]),
            neighbor_bits=self._neighbor_bits(),
            controls={name: float(best_bits(counts.tables())) for name, counts in self._controls.items()},
        )

    def _codes(self, spikes: Float[Tensor, "rows time channels"]) -> Int64[Tensor, "rows counted channels"]:
        return spikes[:, FIRST_COUNTED:].long() + self._levels

    def _add_own(
        self, codes: Int64[Tensor, "rows counted channels"], values: Int64[Tensor, "rows counted channels"]
    ) -> None:
        """Each channel's spikes beside its own pre-activations."""
        count, kinds, bins = self._own.shape
        channel = torch.arange(count, device=codes.device)
        cells = (channel * kinds + codes) * bins + values
        self._own += torch.bincount(cells.flatten(), minlength=self._own.numel()).view_as(self._own)

    def _neighbor_bits(self) -> float | None:
        if not self._kept:
            return None
        tokens = self._options.neighbor_tokens
        codes, scores = (torch.cat(parts)[:tokens] for parts in zip(*self._kept, strict=True))
        return float(nearest_neighbor_bits(codes, scores, self._options.neighbors).mean())


def best_bits(
    tables: Int64[Tensor, "*permutations channels targets first second"],
) -> Float64[Tensor, "*permutations"]:
    """Corrected bits of each channel about its best target, the mean over channels."""
    return mutual_information_bits(tables).amax(dim=-1).mean(dim=-1)


def spread_channels(width: int, count: int) -> Int64[Tensor, " channels"]:
    """At most `count` channels, evenly spaced over all."""
    if count >= width:
        return torch.arange(width)
    return torch.arange(count) * width // count
