import pytest

from asnn_goose.config_validation import RecordedGates, SoundThresholds
from asnn_goose.evaluation.spike_verdicts import recorded_verdict, sound_estimates, sound_verdict
from asnn_goose.validation_results import (
    RATE_BINS,
    CausalUse,
    MatchedSimilarity,
    NullInformation,
    Replacement,
    Representation,
    SiteHealth,
    SiteInformation,
    SiteProbe,
)
from asnn_goose.validation_verdicts import RecordedEstimates

SITES = ((0, "k"), (0, "v"))
GOOD = RecordedEstimates(
    dead_fraction=0.04, saturated_fraction=0.0, mutual_information_bits=0.2, cka=0.4, firing_rate=0.2
)


def information(site, p=0.005, best_lag=0, bits=0.3):
    null = NullInformation(mean_bits=0.1, p=p, permutations=199)
    return SiteInformation(layer=site[0], site=site[1], teacher_layer=1, spikes_bits=bits, null=null, best_lag=best_lag)


def probe(site, spikes=1.8, before=2.0, untrained=0.5, entropy=3.0):
    return SiteProbe(
        layer=site[0],
        site=site[1],
        teacher_layer=1,
        spikes_bits=spikes,
        preactivation_bits=before,
        untrained_bits=untrained,
        target_entropy_bits=entropy,
    )


def use(**ratios):
    entries = [
        Replacement(site=site, replacement=way, ratio=ratio)
        for site, ways in ratios.items()
        for way, ratio in ways.items()
    ]
    return CausalUse(tokens=512, replacements=tuple(entries))


def judged(**changes):
    """Criteria by name: of a sound student, but for what is given."""
    given = {
        "sites": SITES,
        "information": [information(site) for site in SITES],
        "probes": [probe(site) for site in SITES],
        "causal": use(k={"zeroed": 2.0}, v={"zeroed": 1.2}),
        "thresholds": SoundThresholds(),
    }
    verdict = sound_verdict(**(given | changes))
    return verdict, {criterion.name: criterion for criterion in verdict.criteria}


def failed(criteria):
    return {name for name, criterion in criteria.items() if not criterion.passed}


def test_spikes_that_are_informative_learned_kept_used_and_aligned_are_sound():
    verdict, criteria = judged()
    assert verdict.passed
    assert not failed(criteria)
    assert all(criterion.meaning for criterion in criteria.values())


def test_every_site_has_to_beat_its_null():
    verdict, criteria = judged(information=[information(SITES[0]), information(SITES[1], p=0.02)])
    assert criteria["informative"].value == 0.02
    assert "layer_0.v" in criteria["informative"].note
    assert failed(criteria) == {"informative", "aligned"}
    assert not verdict.passed


def test_the_lead_is_a_share_of_what_the_untrained_student_leaves():
    _, criteria = judged(
        probes=[probe(SITES[0], spikes=1.0, untrained=0.5), probe(SITES[1], spikes=2.0, untrained=1.5)]
    )
    # (0.5 + 0.5) / (2.5 + 1.5)
    assert criteria["learned"].value == 0.25


def test_a_site_that_an_untrained_student_knows_anyway_decides_nothing():
    known = probe(SITES[0], spikes=2.98, untrained=2.99, before=2.99)
    _, criteria = judged(probes=[known, probe(SITES[1], spikes=1.75, untrained=0.5)])
    assert criteria["learned"].value == pytest.approx((1.25 - 0.01) / 2.51, rel=1e-5)
    assert criteria["learned"].passed


def test_spikes_that_lead_by_nothing_have_learned_nothing():
    _, criteria = judged(probes=[probe(site, spikes=2.0, untrained=2.0) for site in SITES])
    assert criteria["learned"].value == 0.0
    assert failed(criteria) == {"learned"}


def test_what_is_kept_is_judged_by_the_probe():
    _, criteria = judged(probes=[probe(SITES[0], before=1.8), probe(SITES[1], before=3.2)])
    assert criteria["kept"].value == pytest.approx(3.6 / 5.0)
    assert failed(criteria) == {"kept"}


def test_activations_that_tell_nothing_leave_nothing_to_keep():
    _, criteria = judged(probes=[probe(site, spikes=0.01, before=-0.01) for site in SITES])
    assert criteria["kept"].value is None
    assert not criteria["kept"].passed
    assert "nothing" in criteria["kept"].note


def test_one_site_that_is_not_used_decides():
    _, criteria = judged(causal=use(k={"zeroed": 9.0}, v={"zeroed": 1.01, "signs_flipped": 1.04}))
    assert criteria["used"].value == 1.04
    assert failed(criteria) == {"used"}


def test_pre_activations_in_place_of_spikes_destroy_nothing():
    _, criteria = judged(causal=use(k={"zeroed": 2.0}, v={"zeroed": 1.0, "preactivations": 7.0}))
    assert criteria["used"].value == 1.0


def test_spikes_of_another_token_are_found_out():
    _, criteria = judged(information=[information(SITES[0]), information(SITES[1], best_lag=1)])
    assert criteria["aligned"].value == 0.5
    assert "layer_0.v at lag +1" in criteria["aligned"].note
    assert failed(criteria) == {"aligned"}


def test_what_reads_the_state_may_tell_most_of_a_token_before():
    reader = (0, "mixer_out")
    sites = (*SITES, reader)
    _, criteria = judged(
        sites=sites,
        information=[*(information(site) for site in SITES), information(reader, best_lag=1)],
        probes=[probe(site) for site in sites],
        causal=use(k={"zeroed": 2.0}, v={"zeroed": 1.2}, mixer_out={"zeroed": 2.0}),
    )
    assert not failed(criteria)


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"information": [information(SITES[0])]}, {"informative", "aligned"}),
        ({"information": [information(site, p=None) for site in SITES]}, {"informative", "aligned"}),
        ({"probes": [probe(SITES[0])]}, {"learned", "kept"}),
        ({"probes": [probe(site, untrained=None) for site in SITES]}, {"learned"}),
        ({"probes": [probe(site, before=None) for site in SITES]}, {"kept"}),
        ({"causal": CausalUse()}, {"used"}),
        ({"causal": use(k={"zeroed": 2.0}, v={"zeroed": None})}, {"used"}),
    ],
)
def test_what_was_not_measured_fails_and_says_so(changes, lost):
    _, criteria = judged(**changes)
    assert failed(criteria) == lost
    assert all(criteria[name].value is None for name in lost)
    assert all("not measured: " in criteria[name].note for name in lost)


def test_without_sites_nothing_passes():
    verdict, criteria = judged(sites=())
    assert not verdict.passed
    assert len(failed(criteria)) == len(criteria)
    assert {criterion.note for criterion in criteria.values()} == {"no encoded site to look at"}


def test_recorded_gates_hold_within_their_bounds():
    verdict = recorded_verdict(GOOD, RecordedGates())
    assert verdict.passed
    assert verdict.passed_as_recorded is None
    assert [gate.threshold for gate in verdict.gates] == ["< 0.05", "< 0.1", "> 0.1", "> 0.3", "in [0.2, 0.6]"]


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("dead_fraction", 0.05),
        ("saturated_fraction", 0.1),
        ("mutual_information_bits", 0.1),
        ("cka", 0.3),
        ("firing_rate", 0.61),
        ("cka", None),
    ],
)
def test_each_recorded_gate_fails_on_its_own(figure, value):
    verdict = recorded_verdict(GOOD.model_copy(update={figure: value}), RecordedGates())
    assert not verdict.passed
    assert sum(not gate.passed for gate in verdict.gates) == 1


def test_recorded_estimators_are_judged_beside_and_decide_nothing():
    verdict = recorded_verdict(GOOD, RecordedGates(), GOOD.model_copy(update={"cka": 0.02}))
    assert verdict.passed
    assert verdict.passed_as_recorded is False
    assert [gate.estimator for gate in verdict.gates] == ["sound"] * 5 + ["recorded"] * 5


def health(rate):
    return SiteHealth(
        layer=0, site="k", channels=4, rate=rate, dead_fraction=0.25, saturated_fraction=0.0, sign_balance=0.0,
        silent_channel_fraction=0.0, entropy_bits=1.0, events_per_activation=rate, flicker=0.5,
        rate_histogram=(0,) * RATE_BINS,
    )  # fmt: skip


def test_sound_estimates_are_means_above_the_null_and_of_k_and_v_alone():
    matched = tuple(
        MatchedSimilarity(layer=0, teacher_layer=1, what=what, cka=cka)
        for what, cka in (("k", 0.2), ("v", 0.4), ("block_output", 0.9))
    )
    told = [information(SITES[0], bits=0.3), information(SITES[1], bits=0.5)]
    found = sound_estimates([health(0.2), health(0.4)], told, Representation(matched=matched))
    assert found == RecordedEstimates(
        dead_fraction=0.25, saturated_fraction=0.0, mutual_information_bits=0.3, cka=0.3, firing_rate=0.3
    )


def test_a_mean_needs_every_site():
    found = sound_estimates([], [information(SITES[0]), information(SITES[1], bits=None)], Representation())
    assert found == RecordedEstimates()
