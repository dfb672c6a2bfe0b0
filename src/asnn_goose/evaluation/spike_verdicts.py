"""What measured sections of a validation say of spikes: by the recorded gates, and by the sound criteria.

Both are pure functions of figures that validation.json holds. What was not measured fails with the reason, and
without sites nothing passes. Reasons for each threshold stand in docs/guide/validation.md.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, cast

from asnn_goose.checks import Check, check, check_between
from asnn_goose.config_validation import RecordedGates, SoundThresholds
from asnn_goose.validation_results import (
    CausalUse,
    Representation,
    SiteHealth,
    SiteInformation,
    SiteProbe,
)
from asnn_goose.validation_verdicts import (
    Criterion,
    CriterionName,
    Gate,
    RecordedEstimates,
    RecordedVerdict,
    SoundVerdict,
)

Site = tuple[int, str]
"""A block of the student and a site of it."""
Parts = Mapping[Site, tuple[float | None, float | None]]
"""By site, what a quotient has above and below its line."""
HARMLESS = "preactivations"
"""The one replacement that destroys nothing."""
MEMORY_SITE = "mixer_out"
"""The site behind the recurrent state: to tell of the tokens before is its work."""
MEANINGS: dict[CriterionName, str] = {
    "informative": "every site's spikes tell more of the teacher than the same rows in another order do",
    "learned": "training put that knowledge there: the untrained student's spikes lack it",
    "kept": "the threshold lets through what the activations before it knew",
    "used": "the student predicts worse once any one site's spikes are destroyed",
    "aligned": "spikes tell most of their own token, not of one before or after it",
}


def sound_estimates(
    health: Sequence[SiteHealth], information: Sequence[SiteInformation], representation: Representation
) -> RecordedEstimates:
    """The recorded validator's five quantities by sound estimates: means over sites.

    Information is what spikes have above the mean of its null, so that the estimator's bias is no information;
    CKA is the debiased one of the spikes of k and v, the recorded sites. One site that lacks a figure leaves no mean.
    """
    above = [_difference(entry.spikes_bits, entry.null.mean_bits) for entry in information]
    return RecordedEstimates(
        dead_fraction=_mean([entry.dead_fraction for entry in health]),
        saturated_fraction=_mean([entry.saturated_fraction for entry in health]),
        mutual_information_bits=_mean(above),
        cka=_mean([entry.cka for entry in representation.matched if entry.what in ("k", "v")]),
        firing_rate=_mean([entry.rate for entry in health]),
    )


def recorded_verdict(
    sound: RecordedEstimates, gates: RecordedGates, recorded: RecordedEstimates | None = None
) -> RecordedVerdict:
    """The recorded gates: of sound estimates, which decide, and beside them of the recorded estimators."""
    ours = _gates(sound, gates, "sound")
    theirs = () if recorded is None else _gates(recorded, gates, "recorded")
    return RecordedVerdict(
        passed=all(found.passed for found in ours),
        passed_as_recorded=all(found.passed for found in theirs) if theirs else None,
        gates=(*ours, *theirs),
    )


def sound_verdict(
    sites: Collection[Site],
    information: Sequence[SiteInformation],
    probes: Sequence[SiteProbe],
    causal: CausalUse,
    thresholds: SoundThresholds,
) -> SoundVerdict:
    """Whether the spikes of the given sites are informative, learned, kept, used and aligned; all have to hold.

    Args:
        sites: What has to be shown of: each encoded site of each block that the layer map names.
        information: Gives `informative` and `aligned`.
        probes: Gives `learned` and `kept`.
        causal: Gives `used`, by site over all blocks.
        thresholds: Where each criterion ends.
    """
    wanted = sorted(sites)
    by_site = {(entry.layer, entry.site): entry for entry in information}
    by_probe = {(entry.layer, entry.site): entry for entry in probes}
    criteria = (
        informative(wanted, by_site, thresholds.null_p),
        learned(wanted, by_probe, thresholds.untrained_effect),
        kept(wanted, by_probe, thresholds.kept_share),
        used(sorted({site for _, site in wanted}), causal, thresholds.causal_ratio),
        aligned([place for place in wanted if place[1] != MEMORY_SITE], by_site, thresholds.null_p),
    )
    return SoundVerdict(passed=all(criterion.passed for criterion in criteria), criteria=criteria)


def informative(sites: Sequence[Site], found: Mapping[Site, SiteInformation], null_p: float) -> Criterion:
    """The largest p of all sites against permutations of whole rows.

    That every site is below the level rejects, at that level and whatever the sites' dependence, that any of them tells
    nothing (an intersection-union test, Berger 1982), so that no correction for the number of sites is due. Holm's
    would need more than sites / level permutations, and its claim is weaker: that some site tells something.
    """
    p = {site: found[site].null.p if site in found else None for site in sites}
    return _by_worst("informative", p, max, "<", null_p)


def learned(sites: Sequence[Site], found: Mapping[Site, SiteProbe], effect: float) -> Criterion:
    """The lead over the untrained student, as a share of what that leaves to be known: sum(s - u) / sum(H - u).

    With s and u the probe's bits from the student's spikes and from the untrained one's, and H the target's entropy.
    This is the mean over sites of (s - u) / (H - u), weighted by H - u: a site of which the untrained student knows
    nearly everything, where the quotient is noise, weighs nearly nothing. A share of what is left, since bits have no
    scale of their own and nobody can lead by more.
    """
    parts: Parts = {
        (probe.layer, probe.site): (
            _difference(probe.spikes_bits, probe.untrained_bits),
            _difference(probe.target_entropy_bits, probe.untrained_bits),
        )
        for probe in found.values()
    }
    return _by_sums("learned", sites, parts, effect, "the untrained student leaves nothing to be known")


def kept(sites: Sequence[Site], found: Mapping[Site, SiteProbe], share: float) -> Criterion:
    """The probe's bits from spikes over its bits from pre-activations, each summed over sites.

    By the probe and not by binned information: what reads a site reads all its channels, which keep together what each
    one's coarse values lose. A ternary channel holds at most 1.58 bits of a number that has more, however well the site
    does.
    """
    parts: Parts = {site: (probe.spikes_bits, probe.preactivation_bits) for site, probe in found.items()}
    return _by_sums("kept", sites, parts, share, "the activations before the threshold tell nothing either")


def used(sites: Sequence[str], causal: CausalUse, ratio: float) -> Criterion:
    """The smallest over sites of the greatest perplexity, over the untouched student's, that destroying spikes reaches.

    Of every site, not of the student as a whole: a site whose spikes may be noise is not worth a kernel. By the
    greatest of its replacements, since each destroys something else: order, sign, identity or presence.
    """
    ratios = {
        site: [entry.ratio for entry in causal.replacements if entry.site == site and entry.replacement != HARMLESS]
        for site in sites
    }
    greatest = {
        site: max((found for found in measured if found is not None), default=None) for site, measured in ratios.items()
    }
    return _by_worst("used", greatest, min, ">=", ratio)


def aligned(sites: Sequence[Site], found: Mapping[Site, SiteInformation], null_p: float) -> Criterion:
    """The share of sites that are informative and tell most at lag 0; it has to be 1.

    A site that tells nothing has no best lag, wherever its noise happens to peak.
    """
    lags = {site: (entry.best_lag, entry.null.p) for site, entry in found.items()}
    absent, lost = [], []
    for site in sites:
        lag, p = lags.get(site, (None, None))
        if lag is None or p is None:
            absent.append(named(site))
        elif p >= null_p:
            lost.append(f"{named(site)} tells nothing")
        elif lag != 0:
            lost.append(f"{named(site)} at lag {lag:+d}")
    share = None if absent or not sites else 1 - len(lost) / len(sites)
    return _criterion(check("aligned", share, ">=", 1.0), _lacking(absent, sites) or ", ".join(lost))


def named(site: Site | str) -> str:
    """A site as metrics.jsonl and results.json name it."""
    return site if isinstance(site, str) else f"layer_{site[0]}.{site[1]}"


def _by_worst(
    name: CriterionName,
    values: Mapping[Any, float | None],
    worst: Callable[..., Any],
    comparison: Literal["<", ">="],
    threshold: float,
) -> Criterion:
    """The criterion of the site that is furthest from passing."""
    absent = [named(site) for site, value in values.items() if value is None]
    if absent or not values:
        return _criterion(check(name, None, comparison, threshold), _lacking(absent, values))
    decides = worst(values, key=lambda site: values[site])
    return _criterion(check(name, values[decides], comparison, threshold), f"{named(decides)} decides")


def _by_sums(name: CriterionName, sites: Sequence[Site], parts: Parts, threshold: float, nothing: str) -> Criterion:
    """The criterion of one sum over sites divided by another, with the site of the least quotient in its note."""
    measured, absent = [], []
    for site in sites:
        above, below = parts.get(site, (None, None))
        if above is None or below is None:
            absent.append(named(site))
        else:
            measured.append((site, above, below))
    whole = sum(below for _, _, below in measured)
    if absent or whole <= 0.0:
        return _criterion(check(name, None, ">=", threshold), _lacking(absent, sites) or nothing)
    share = sum(above for _, above, _ in measured) / whole
    quotients = {site: above / below for site, above, below in measured if below > 0.0}
    least = min(quotients, key=lambda site: quotients[site])
    return _criterion(check(name, share, ">=", threshold), f"least at {named(least)}: {quotients[least]:.3g}")


def _criterion(found: Check, note: str) -> Criterion:
    name = cast(CriterionName, found.name)
    return Criterion(
        name=name, value=found.value, threshold=found.required, passed=found.passed, meaning=MEANINGS[name], note=note
    )


def _lacking(absent: Sequence[str], sites: Collection[Any]) -> str:
    """Why a figure cannot be had; empty where it can."""
    return f"not measured: {', '.join(absent)}" if absent else "" if sites else "no encoded site to look at"


def _gates(found: RecordedEstimates, gates: RecordedGates, estimator: Literal["sound", "recorded"]) -> tuple[Gate, ...]:
    checks = (
        check("dead channels", found.dead_fraction, "<", gates.dead_fraction),
        check("saturated channels", found.saturated_fraction, "<", gates.saturated_fraction),
        check("mutual information in bits", found.mutual_information_bits, ">", gates.mutual_information_bits),
        check("CKA", found.cka, ">", gates.cka),
        check_between("firing rate", found.firing_rate, *gates.firing_rate),
    )
    return tuple(
        Gate(name=gate.name, estimator=estimator, value=gate.value, threshold=gate.required, passed=gate.passed)
        for gate in checks
    )


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return fmean(measured) if measured and len(measured) == len(values) else None
