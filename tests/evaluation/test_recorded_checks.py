import pytest

from asnn_goose.config_recorded import recorded_facts, recorded_line
from asnn_goose.evaluation.recorded_checks import LISTS, recorded_checks

COUNTS = {"v6": 7, "v8": 8, "v9": 9, "v11.1a": 10, "v11a": 12, "v12.1": 10, "v14": 12}
CTKD = {"temperature": [2.0] * 4 + [1.6] * 4, "temperature_lambda": [0.0] * 4 + [0.9] * 4}
V14 = {
    "temperature": [2.0, 1.9, 1.5],
    "loss_nats": [5.0, 4.0],
    "memory_bytes": [1e9, 5.57e9],
    "dynamics_error": [0.0, 0.79, 0.7, 0.7, 0.7, 0.7, 0.6],
}


def outcome(evidence):
    return {entry.name.split(": ")[1]: entry.passed for entry in recorded_checks(evidence)}


def failed(evidence):
    return {name for name, passed in outcome(evidence).items() if not passed}


def test_the_lists_have_the_recorded_numbers_of_checks():
    assert {name: len(tests) for name, tests in LISTS.items()} == COUNTS
    stated = {facts.checks.list: facts.checks.exist for facts in recorded_line() if facts.checks and facts.checks.exist}
    assert stated == COUNTS


def test_a_recipe_is_checked_by_its_version_and_by_none_without(make_evidence):
    assert recorded_checks(make_evidence()) == ()
    assert recorded_checks(make_evidence("v15")) == ()
    assert {len(recorded_checks(make_evidence(version))) for version in ("v9", "v10", "v11")} == {9}


@pytest.mark.parametrize("version", ["v8", "v9"])
def test_the_recorded_outcome_passes_all_its_checks(make_evidence, version):
    facts = recorded_facts(version)
    evidence = make_evidence(version, (facts.headline, 44.6), encoders={"amplitudes": facts.amplitudes})
    assert len(recorded_checks(evidence)) == facts.checks.passed
    assert not failed(evidence)


def test_v6_fails_its_own_student_below_500(make_evidence):
    assert failed(make_evidence("v6", (627.3, 44.6))) == {"student_learned"}


def test_v7_fails_what_its_perplexity_fails(make_evidence):
    assert failed(make_evidence("v7", (1655.0, 44.6))) == {"student_learned", "beats_v6"}


def test_v14_passes_11_of_12(make_evidence):
    evidence = make_evidence(
        "v14", (425.19, 44.6), metrics=V14, counters={"steps_done": 4500, "stopped_early": True},
        training={"steps": 5000, "early_stopping": {"patience_steps": 500, "min_delta": 1.0}},
        evaluations=recorded_facts("v14").trajectory, encoders={"amplitudes": (0.71, 1.18)}, density=0.371,
    )  # fmt: skip
    assert failed(evidence) == {"best_perplexity"}


def test_another_teacher_is_judged_by_ratio(make_evidence):
    checks = recorded_checks(make_evidence("v9", (140.0, 10.0), teacher="pocket", protocol="standard"))
    found = {entry.name: entry for entry in checks}
    assert found["v9: student_learned"].value == 14.0
    assert found["v9: student_learned"].threshold == pytest.approx(627 / 44.6, abs=1e-3)
    assert found["v9: student_learned"].passed
    assert not outcome(make_evidence("v9", (141.0, 10.0), teacher="pocket"))["student_learned"]


@pytest.mark.parametrize(("perplexity", "passed"), [(49.9, True), (50.0, False)])
def test_a_teacher_is_pretrained_below_50_or_far_below_guessing(make_evidence, perplexity, passed):
    assert outcome(make_evidence("v9", (30.0, perplexity)))["teacher_pretrained"] is passed
    assert outcome(make_evidence("v9", (30.0, 100.6 * perplexity), teacher="pocket"))["teacher_pretrained"] is passed


def test_a_dense_twin_is_not_asked_about_spikes(make_evidence):
    dense = {"spikes": False, "distinct_values": None, "gradient_norm": None, "amplitudes": ()}
    names = set(outcome(make_evidence("v9", encoders=dense, density=None)))
    assert names == {"teacher_pretrained", "student_learned", "lora", "beats_v6"}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"distinct_values": 4}, "ternary"),
        ({"gradient_norm": 0.0}, "gradient"),
        ({"adaptable": 0}, "lora"),
        ({"amplitudes": (0.96, 1.04)}, "amplitudes_learned"),
        ({"amplitudes": (0.3, 1.0)}, "amplitude_health"),
        ({"amplitudes": (1.1, 3.1)}, "amplitude_health"),
    ],
)
def test_each_check_of_encoders_fails_alone(make_evidence, changes, name):
    assert failed(make_evidence("v9", encoders=changes)) == {name}


@pytest.mark.parametrize(
    ("metrics", "passes"),
    [
        (CTKD, True),
        ({**CTKD, "temperature_lambda": [0.4] * 8}, False),
        ({**CTKD, "temperature": [2.0] * 4 + [4.95] * 4}, False),
        ({**CTKD, "temperature": [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.2, 3.0]}, False),
        ({**CTKD, "temperature": [0.9] + [1.5] * 7}, False),
        ({}, False),
    ],
)
def test_ctkd_has_four_parts_that_all_must_hold(make_evidence, metrics, passes):
    assert outcome(make_evidence("v12.1", metrics=metrics))["ctkd"] is passes


def test_a_part_that_does_not_hold_is_named(make_evidence):
    found = recorded_checks(make_evidence("v12.1", metrics={**CTKD, "temperature_lambda": [0.4] * 8}))[-1]
    assert (found.value, found.threshold) == (3, 4)
    assert found.note.startswith("lambda 0.4 > 0.5 over the last fifth (no); T 1.6 to 2 in [1, 5]; ")


def test_v11a_asks_for_stages_alignment_and_a_temperature_at_rest(make_evidence):
    metrics = {"temperature": [2.0, 4.0, 2.5, 1.5, 1.5], "hidden_error": [4.0, 3.0, 2.0, 1.0]}
    assert not failed(make_evidence("v11a", metrics=metrics, stages=(40, 30, 30)))
    assert failed(make_evidence("v11a", metrics=metrics, stages=(50, 20, 30))) == {"stages"}
    assert failed(make_evidence("v11a", stages=(40, 30, 30))) == {"temperature", "alignment"}


@pytest.mark.parametrize(
    ("counters", "passed"),
    [({"steps_done": 94}, False), ({"steps_done": 95}, True), ({"steps_done": 31, "stopped_early": True}, True),
     ({"steps_done": 30, "stopped_early": True}, False)],
)  # fmt: skip
def test_a_run_is_complete_at_95_percent_or_above_30_if_stopped(make_evidence, counters, passed):
    assert outcome(make_evidence("v14", counters=counters))["run_complete"] is passed


def test_a_stop_that_the_rule_does_not_give_is_inconsistent(make_evidence):
    assert not outcome(make_evidence("v14", counters={"stopped_early": True}))["early_stopping_consistent"]
    assert outcome(make_evidence("v14"))["early_stopping_consistent"]


def test_losses_that_are_not_finite_and_missing_feature_dynamics_fail(make_evidence):
    found = outcome(make_evidence("v14", metrics={**V14, "loss_nats": [5.0, None], "dynamics_error": [0.0]}))
    assert not any(found[name] for name in ("losses_finite", "feature_dynamics_active", "feature_dynamics_fell"))
    assert found["memory"]
