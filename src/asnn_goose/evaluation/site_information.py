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
from asnn_goose.evaluation.observation import Place, SiteObservation
from asnn_goose.evaluation.teacher_targets import FIRST_COUNTED, TeacherTargets
from asnn_goose.information.bins import bin_codes
from asnn_goose.information.controls import Control, rate_matched_noise, shift_in_time, shuffle_in_time, shuffle_signs
from asnn_goose.information.joint_counts import JointCounts, PermutedCounts, TableSizes, one_hot
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
        borders: Of the bins of its pre-activations, channel by channel; None if the spikes' own tables are all that is
            wanted, as for the untrained student.
        channels: Indices of the channels that are looked at.
    """

    def __init__(
        self,
        levels: int,
        options: ValidationOptions,
        targets: TeacherTargets,
        borders: Float64[Tensor, "channels borders"] | None,
        channels: Int64[Tensor, " channels"],
    ) -> None:
        self._levels, self._options, self._targets = levels, options, targets
        self._borders, self._channels = borders, channels
        codes, bins, count, device = 2 * levels + 1, options.bins, len(channels), targets.borders.device
        spikes = TableSizes(count, options.components, codes, bins)
        self._spikes = JointCounts(spikes, device)
        self._kept: list[tuple[Tensor, Tensor]] = []
        if borders is None:
            return
        self._values = JointCounts(TableSizes(count, options.components, bins, bins), device)
        self._own = torch.zeros(count, codes, bins, dtype=torch.int64, device=device)
        lags = range(-options.greatest_lag, options.greatest_lag + 1)
        self._lags = {lag: JointCounts(spikes, device) for lag in lags if lag}
        self._controls = {name: JointCounts(spikes, device) for name in (*SPIKE_CONTROLS, TEACHER_SHUFFLE)}
        self._null = PermutedCounts(spikes, options.permutations, options.permuted_rows, options.seed, device)

    def add(self, seen: SiteObservation, scores: Float64[Tensor, "rows counted components"], first_row: int) -> None:
        """Count whole rows, of which `first_row` is the first one's index in the text."""
        spikes, seed = seen.spikes[..., self._channels], self._options.seed
        codes, wanted = self._codes(spikes), self._targets.codes(scores)
        met, asked = one_hot(codes, 2 * self._levels + 1), one_hot(wanted, self._options.bins)
        self._spikes.add_columns(met, asked)
        if self._borders is None:
            return
        values = bin_codes(seen.preactivations[:, FIRST_COUNTED:, self._channels], self._borders)
        self._values.add_columns(one_hot(values, self._options.bins), asked)
        self._add_own(codes, values)
        self._null.add(codes, wanted)
        for lag, counts in self._lags.items():
            # A token's spikes beside the teacher `lag` tokens before it.
            late, early = (slice(lag, None), slice(None, -lag)) if lag > 0 else (slice(None, lag), slice(-lag, None))
            counts.add_columns(met[:, late], asked[:, early])
        for name, control in SPIKE_CONTROLS.items():
            others = self._codes(control(spikes, seed, first_row))
            self._controls[name].add_columns(one_hot(others, 2 * self._levels + 1), asked)
        self._controls[TEACHER_SHUFFLE].add_columns(met, shuffle_in_time(asked, seed, first_row))
        if sum(len(part) for part, _ in self._kept) < self._options.neighbor_tokens:
            self._kept.append((codes[..., :NEIGHBOR_CHANNELS].flatten(0, 1), scores.flatten(0, 1)))

    def spikes_bits(self) -> float:
        """Mean over channels of what spikes tell of their best component."""
        return float(best_bits(self._spikes.tables()))

    def summary(self, layer: int, site: str, state: int, neighbor_bits: float | None) -> SiteInformation:
        """The site's figures beside the state it was asked about, without the untrained student's and the twin's.

        The cross-check's bits come from `neighbor_bits`, which asks for all sites at once.
        """
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
            neighbor_bits=neighbor_bits,
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

    def neighbor_sample(self) -> tuple[Int64[Tensor, "tokens channels"], Float64[Tensor, "tokens components"]]:
        """Codes of a few channels and scores of the first tokens, for the cross-check."""
        tokens = self._options.neighbor_tokens
        codes, scores = (torch.cat(parts)[:tokens] for parts in zip(*self._kept, strict=True))
        return codes, scores


def neighbor_bits(sites: Mapping[Place, InformationCounts], neighbors: int) -> dict[Place, float]:
    """The cross-check by distances for sites that are asked about the same scores, which are sorted once for all."""
    samples = {place: site.neighbor_sample() for place, site in sites.items()}
    labels = [codes for codes, _ in samples.values()]
    scores = next(scores for _, scores in samples.values())
    bits = nearest_neighbor_bits(torch.cat(labels, dim=1), scores, neighbors)
    by_site = bits.split([codes.shape[1] for codes in labels])
    return {place: float(found.mean()) for place, found in zip(samples, by_site, strict=True)}


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
