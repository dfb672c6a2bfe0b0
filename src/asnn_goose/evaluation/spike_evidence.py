"""What a stream of observations shows of a student's spikes: health, information, probes and similarity, in one pass.

The first rows calibrate: they give principal components and the borders of bins, and count for nothing else. Of the
leading rows behind them probes are fitted to the first half and judged on the second, and from there on insides are
compared. Nothing is kept but sums, so memory does not grow with the text, and sums are of whole rows in float64 or
whole numbers, so batches do not change them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from asnn_goose.config_validation import ValidationOptions
from asnn_goose.errors import DataError
from asnn_goose.evaluation.layer_targets import LayerTargets
from asnn_goose.evaluation.observation import Observation, Place, SiteObservation
from asnn_goose.evaluation.similarity_evidence import SimilarityEvidence
from asnn_goose.evaluation.site_information import InformationCounts, neighbor_bits, spread_channels
from asnn_goose.evaluation.site_probe import ProbeEvidence
from asnn_goose.evaluation.spike_health import HealthCounts
from asnn_goose.evaluation.teacher_targets import FIRST_COUNTED, TeacherTargets, fit_targets
from asnn_goose.information.bins import equal_mass_borders
from asnn_goose.information.permutations import check_enough_rows, least_rows
from asnn_goose.information.side_by_side import side_by_side
from asnn_goose.validation_results import Representation, SiteHealth, SiteInformation, SiteProbe

LEAST_LEADING = 4
"""Rows that two halves of probes, and a comparison, take at least."""


@dataclass(frozen=True)
class Evidence:
    """Everything but what replacing spikes does."""

    health: tuple[SiteHealth, ...]
    information: tuple[SiteInformation, ...]
    probes: tuple[SiteProbe, ...]
    representation: Representation


@dataclass(frozen=True)
class PlainEvidence:
    """What a student beside the one that is validated is compared by: bits by place, similarities by what and block."""

    information_bits: dict[Place, float]
    probe_bits: dict[Place, float]
    cka: dict[tuple[str, int], float | None]


@dataclass(frozen=True, eq=False)
class _SiteSample:
    """What calibration asks a batch of one site for: its channels, which of them are looked at, their values."""

    width: int
    channels: Int64[Tensor, " channels"]
    values: Float[Tensor, "rows counted channels"]

    @classmethod
    def of(cls, seen: SiteObservation, channels: int, rows: int) -> "_SiteSample":
        """The first rows of a batch, copied: of all that a site did little is wanted, and it need not be kept."""
        width = seen.spikes.shape[-1]
        chosen = spread_channels(width, channels).to(seen.spikes.device)
        return cls(width, chosen, seen.preactivations[:rows, FIRST_COUNTED:, chosen])


@dataclass(frozen=True, eq=False)
class _Calibration:
    """The same of all sites, and the states of the teacher."""

    rows: int
    sites: dict[Place, _SiteSample]
    hidden: dict[int, Float[Tensor, "rows time teacher_width"]]


class _Site:
    """All accumulators of one site."""

    def __init__(
        self,
        like: "_SiteSample",
        borders: Float64[Tensor, "channels borders"] | None,
        levels: int,
        targets: TeacherTargets,
        plan: "SpikeEvidence",
    ) -> None:
        self.health = HealthCounts(like.width, levels, like.channels.device)
        self.information = InformationCounts(levels, plan.options, targets, borders, like.channels)
        self.probe = ProbeEvidence(like.width, targets, plan.fitted_rows, plan.options.seed, plan.plain)
        self._plain = plan.plain

    def add(
        self, seen: SiteObservation, scores: Float64[Tensor, "rows counted components"], first_row: int, probed: int
    ) -> None:
        """Take in whole rows, the first of which is `first_row` of the text; the leading `probed` for the probes."""
        leading = SiteObservation(seen.spikes[:probed], seen.preactivations[:probed])
        if not self._plain:
            self.health.add(seen.spikes)
            self.information.add(seen, scores, first_row)
        elif probed:
            self.information.add(leading, scores[:probed], first_row)
        if probed:
            self.probe.add(leading, scores[:probed], first_row)


class SpikeEvidence:
    """Takes in observations row by row.

    Args:
        options: How much is looked at.
        layers: Which of the teacher's states each inside stands for.
        rows: Rows that will come, those of the calibration included.
        levels: Largest spike D.

    Raises:
        DataError: Too few rows for the calibration, two halves and the null; says how many are needed.
    """

    def __init__(self, options: ValidationOptions, layers: LayerTargets, rows: int, levels: int) -> None:
        check_rows(rows, options)
        self.options, self.layers, self.plain = options, layers, False
        self._rows = rows
        behind = rows - options.calibration_rows
        self._probe_rows, self._similarity_rows = (
            min(behind, max(LEAST_LEADING, tokens // options.window))
            for tokens in (options.probe_tokens, options.similarity_tokens)
        )
        self.fitted_rows = self._probe_rows // 2
        # Behind the rows that probes are fitted to, where there are so many: moments of both are never held at once.
        self._similarity_start = max(0, min(self.fitted_rows, behind - self._similarity_rows))
        self._levels, self._rows_seen = levels, 0
        self._device = torch.device("cpu")
        self._waiting: list[_Calibration] = []
        self._targets: dict[int, TeacherTargets] = {}
        self._sites: dict[Place, _Site] = {}
        self._similarity = SimilarityEvidence(layers, options.seed)

    def beside(self) -> "SpikeEvidence":
        """Of a student that is only compared with, by what spikes tell, without null or controls.

        It is asked about what this one's calibration finds, and takes in rows from behind the calibration on.
        """
        other = SpikeEvidence(self.options, self.layers, self._rows, self._levels)
        other.plain, other._targets = True, self._targets
        other._similarity = SimilarityEvidence(self.layers, self.options.seed, plain=True)
        return other

    def add(self, seen: Observation) -> None:
        """Take in whole rows, in their order.

        Raises:
            ValueError: What this one is beside has not been calibrated.
        """
        if self.plain and not self._targets:
            raise ValueError("students are compared behind the calibration: give the first one its rows before")
        if self.plain and not self._sites:
            self._open({place: [_SiteSample.of(site, self.options.channels, 0)] for place, site in seen.sites.items()})
        missing = self.options.calibration_rows - sum(part.rows for part in self._waiting) if not self._targets else 0
        if missing > 0:
            self._waiting.append(self._sample(seen, min(missing, seen.rows)))
            if missing > seen.rows:
                return
            self._calibrate()
            seen = rows_of(seen, slice(missing, None))
        if seen.rows:
            self._take_in(seen)

    def _take_in(self, seen: Observation) -> None:
        """What comes behind the calibration."""
        first_row, self._device = self._rows_seen, seen.teacher_hidden[0].device
        probed = max(0, self._probe_rows - first_row)
        start = self._similarity_start - first_row
        similar = slice(max(0, start), max(0, start + self._similarity_rows))
        if self.plain:
            seen = rows_of(seen, slice(None, max(probed, similar.stop)))
            if not seen.rows:
                return
        scores = {state: targets.scores(seen.teacher_hidden[state]) for state, targets in self._targets.items()}
        tasks: list[Callable[[], None]] = [
            partial(site.add, seen.sites[place], scores[self.layers.state_of(*place)], first_row, probed)
            for place, site in self._sites.items()
        ]
        compared = rows_of(seen, similar)
        if compared.rows:
            tasks += self._similarity.tasks(compared, first_row + similar.start)
        side_by_side(tasks, self._device)
        self._rows_seen += seen.rows

    @property
    def is_complete(self) -> bool:
        """Whether what is still to come would change nothing, as for a student that is only compared with."""
        last = max(self._probe_rows, self._similarity_start + self._similarity_rows)
        return self.plain and bool(self._targets) and self._rows_seen >= last

    def finish(self) -> Evidence:
        """What it all amounts to."""
        similarity = self._similarity.summary()
        states = {place: self.layers.state_of(*place) for place in self._sites}
        by_state: dict[int, dict[Place, InformationCounts]] = {}
        for place, site in self._sites.items():
            by_state.setdefault(states[place], {})[place] = site.information
        checks = [partial(neighbor_bits, asked, self.options.neighbors) for asked in by_state.values()]
        checked = {place: bits for found in side_by_side(checks, self._device) for place, bits in found.items()}
        summaries = [
            partial(site.information.summary, *place, states[place], checked[place])
            for place, site in self._sites.items()
        ]
        return Evidence(
            tuple(site.health.summary(*place) for place, site in self._sites.items()),
            tuple(side_by_side(summaries, self._device)),
            tuple(site.probe.summary(*place, states[place]) for place, site in self._sites.items()),
            similarity,
        )

    def finish_plain(self) -> PlainEvidence:
        """The few figures that another student is compared by."""
        return PlainEvidence(
            {place: site.information.spikes_bits() for place, site in self._sites.items()},
            {place: site.probe.spikes_bits() for place, site in self._sites.items()},
            {(entry.what, entry.layer): entry.cka for entry in self._similarity.summary().matched},
        )

    def _sample(self, seen: Observation, rows: int) -> _Calibration:
        states = {*self.layers.given.values(), *self.layers.made.values()}
        return _Calibration(
            rows,
            {place: _SiteSample.of(site, self.options.channels, rows) for place, site in seen.sites.items()},
            {state: seen.teacher_hidden[state][:rows] for state in states},
        )

    def _calibrate(self) -> None:
        seen, self._waiting = self._waiting, []
        options = self.options
        for state in sorted(seen[0].hidden):
            hidden = torch.cat([part.hidden[state] for part in seen])
            self._targets[state] = fit_targets(hidden, options.components, options.bins)
        self._open({place: [part.sites[place] for part in seen] for place in seen[0].sites})

    def _open(self, sites: Mapping[Place, Sequence[_SiteSample]]) -> None:
        """Begin to count at every site that is looked at."""
        for place in sorted(place for place in sites if self.layers.covers(*place)):
            borders = None
            if not self.plain:
                values = torch.cat([sample.values for sample in sites[place]])
                borders = equal_mass_borders(values.flatten(0, 1), self.options.bins)
            targets = self._targets[self.layers.state_of(*place)]
            self._sites[place] = _Site(sites[place][0], borders, self._levels, targets, self)


def rows_needed(options: ValidationOptions) -> int:
    """Least rows for a calibration, two rows for each half, and as many arrangements as the null has permutations."""
    return options.calibration_rows + max(LEAST_LEADING, least_rows(options.permutations, options.permuted_rows))


def check_rows(rows: int, options: ValidationOptions) -> None:
    """Refuse a text that is too short.

    Raises:
        DataError: Too few rows; says how many tokens are needed.
    """
    needed = rows_needed(options)
    if rows < needed:
        raise DataError(
            f"the text has {rows} rows of {options.window} tokens; {options.calibration_rows} to calibrate and a null "
            f"of {options.permutations} permutations need {needed} ({needed * options.window:,} tokens): give more text"
        )
    check_enough_rows(rows - options.calibration_rows, options.permutations, options.permuted_rows)


def rows_of(seen: Observation, part: slice) -> Observation:
    """Some rows of an observation."""
    return Observation(
        {place: SiteObservation(site.spikes[part], site.preactivations[part]) for place, site in seen.sites.items()},
        {block: state[part] for block, state in seen.states.items()},
        tuple(output[part] for output in seen.block_outputs),
        tuple(hidden[part] for hidden in seen.teacher_hidden),
    )
