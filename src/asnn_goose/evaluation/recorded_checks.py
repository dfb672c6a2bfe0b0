"""The recorded line's own validation tests as named checks: 7 of v6, 8 of v8, 9 of v9, 10 of v12.1, 12 of v11a and v14.

A perplexity is judged as recorded where teacher and protocol are the recorded ones; otherwise as a ratio to the run's
own teacher, against the recorded threshold over the recorded teacher's 44.6. It is the student's best: the record's own
is after test-time training on the last weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from asnn_goose.checks import Check, check, check_between
from asnn_goose.config_recorded import CheckList, RecordedVersion, recorded_facts
from asnn_goose.evaluation.run_evidence import (
    FEATURE_DYNAMICS,
    HIDDEN_ALIGNMENT,
    LAMBDA,
    TEMPERATURE,
    RunEvidence,
    deviation_of,
    last_share,
    mean_of,
    stop_step,
)

RECORDED_TEACHER_PERPLEXITY = recorded_facts("v6").teacher_perplexity or math.nan
PRETRAINED_SHARE_OF_VOCABULARY = 0.1
"""Perplexity over the number of words, above which a teacher hardly knows more than one that guesses."""
AMPLITUDE_ENDS = (0.3, 3.0)
BYTES_PER_GB = 1e9
Test = Callable[[RunEvidence, str], Check]


def recorded_checks(evidence: RunEvidence) -> tuple[Check, ...]:
    """The checks of the list that the recipe's recorded version names; none where it names none.

    A dense twin, which encodes nothing, is not asked about spikes.
    """
    recorded = evidence.recipe.recorded
    if recorded is None or recorded.checks is None:
        return ()
    chosen = recorded.checks.list
    tests = {name: test for name, test in LISTS[chosen].items() if evidence.encoders.spikes or name not in OF_SPIKES}
    return tuple(test(evidence, f"{chosen}: {name}") for name, test in tests.items())


def teacher_pretrained(evidence: RunEvidence, name: str) -> Check:
    """The teacher knows its language: below 50 on the recorded scale."""
    perplexity = evidence.results.teacher.perplexity
    if evidence.is_as_recorded:
        return check(name, perplexity, "<", 50.0)
    share = None if perplexity is None else perplexity / evidence.vocabulary
    return check(
        name, share, "<", PRETRAINED_SHARE_OF_VOCABULARY,
        note="perplexity over the vocabulary, which guessing has 1 of; recorded: perplexity < 50",
    )  # fmt: skip


def student_below(evidence: RunEvidence, name: str, threshold: float) -> Check:
    """The student's best perplexity lies below a recorded threshold."""
    if evidence.is_as_recorded:
        return check(name, evidence.results.student.perplexity, "<", threshold)
    return check(
        name, evidence.results.ratio.to_teacher, "<", round(threshold / RECORDED_TEACHER_PERPLEXITY, 3),
        note=f"ratio to the teacher; recorded: perplexity < {threshold:g}, over {RECORDED_TEACHER_PERPLEXITY:g}",
    )  # fmt: skip


def ternary(evidence: RunEvidence, name: str, most_values: int | None) -> Check:
    """The first layer's spikes are -1, 0 and 1 (v6), or of few distinct values (since v8)."""
    if most_values is None:
        return check(name, evidence.encoders.strange_values, "<=", 0, note="values that are not -1, 0 or 1")
    return check(name, evidence.encoders.distinct_values, "<=", most_values, note="distinct values")


def gradient(evidence: RunEvidence, name: str) -> Check:
    """A gradient passes the spikes."""
    return check(name, evidence.encoders.gradient_norm, ">", 0.0, note="its norm at random activations")


def density(evidence: RunEvidence, name: str, ends: bool) -> Check:
    """Neither silent nor always spiking."""
    return check_between(name, evidence.results.spikes.density, 0.1, 0.9, ends=ends)


def lora(evidence: RunEvidence, name: str) -> Check:
    """There is something that test-time training could adapt."""
    return check(name, evidence.encoders.adaptable, ">", 0, note="projections of k and v to adapt")


def amplitudes_learned(evidence: RunEvidence, name: str, least: float) -> Check:
    """Some amplitude has left its start at 1."""
    moved = max((abs(value - 1.0) for value in evidence.encoders.amplitudes), default=None)
    return check(name, moved, ">", least, note="largest |amplitude - 1|")


def amplitude_health(evidence: RunEvidence, name: str, ends: bool) -> Check:
    """No amplitude has run away."""
    lower, upper = AMPLITUDE_ENDS
    worst = min(evidence.encoders.amplitudes, key=lambda value: min(value - lower, upper - value), default=None)
    return check_between(name, worst, lower, upper, ends=ends, note="the amplitude nearest to an end, or beyond")


def temperature_moved(evidence: RunEvidence, name: str) -> Check:
    """A temperature that learns has left its start."""
    found = evidence.values(TEMPERATURE)
    return check(name, abs(found[-1] - found[0]) if found else None, ">", 0.1, note="|end - start|")


def temperature_end(evidence: RunEvidence, name: str) -> Check:
    """The temperature ends where the review expected it."""
    return check_between(name, next(reversed(evidence.values(TEMPERATURE)), None), 2.0, 3.0)


def learned_temperature(evidence: RunEvidence, name: str) -> Check:
    """A temperature by stages moves, ends within [1, 10] and comes to rest."""
    found = evidence.values(TEMPERATURE)
    end, rest = (found[-1] if found else None), deviation_of(last_share(found, 0.2))
    moved = max(found) - min(found) if found else None
    return all_parts(
        name,
        {
            f"range {_shown(moved)} > 0.1": moved is not None and moved > 0.1,
            f"end {_shown(end)} in [1, 10]": end is not None and 1.0 <= end <= 10.0,
            f"deviation of the last fifth {_shown(rest)} < 1": rest is not None and rest < 1.0,
        },
    )


def ctkd(evidence: RunEvidence, name: str) -> Check:
    """Lambda is strong at the end, and the temperature within its bounds, off the upper one, and at rest."""
    found, strengths = evidence.values(TEMPERATURE), evidence.values(LAMBDA)
    end, rest = (found[-1] if found else None), deviation_of(last_share(found, 0.2))
    strength = mean_of(last_share(strengths, 0.2))
    lower, upper = evidence.temperature_bounds or (1.0, 5.0)
    ends = f"{_shown(min(found, default=None))} to {_shown(max(found, default=None))}"
    return all_parts(
        name,
        {
            f"lambda {_shown(strength)} > 0.5 over the last fifth": strength is not None and strength > 0.5,
            f"T {ends} in [{lower:g}, {upper:g}]": bool(found)
            and lower - 0.01 <= min(found) <= max(found) <= upper + 0.01,
            f"end {_shown(end)} < 4.9": end is not None and end < 4.9,
            f"deviation of the last fifth {_shown(rest)} < 0.5": rest is not None and rest < 0.5,
        },
    )


def alignment_fell(evidence: RunEvidence, name: str) -> Check:
    """Hidden states came nearer to the teacher's."""
    found = evidence.values(HIDDEN_ALIGNMENT)
    quarter = max(1, len(found) // 4)
    return fell(name, found[:quarter], found[-quarter:], "mean of the last quarter over that of the first")


def stages_changed(evidence: RunEvidence, name: str) -> Check:
    """Stages change at 35 to 45 and at 65 to 75 % of the steps."""
    steps = [stage.steps or 0 for stage in evidence.results.stages]
    whole = max(sum(steps), 1)
    shares = [sum(steps[:place]) / whole for place in range(1, len(steps))]
    asked = ((0.35, 0.45), (0.65, 0.75))
    return all_parts(
        name,
        {
            f"a change in [{a:g}, {b:g}] of {_shares(shares)}": any(a <= share <= b for share in shares)
            for a, b in asked
        },
    )


def run_complete(evidence: RunEvidence, name: str) -> Check:
    """At least 95 % of the steps were done, or more than 30 % where early stopping ended the run."""
    counters, budget = evidence.results.counters, evidence.step_budget
    share = None if budget is None else counters.steps_done / budget
    if counters.stopped_early:
        return check(name, share, ">", 0.3, note="share of the budget, stopped early")
    return check(name, share, ">=", 0.95, note="share of the budget")


def losses_finite(evidence: RunEvidence, name: str) -> Check:
    """No logged loss is not finite."""
    lines = [line["loss_nats"] for line in evidence.metrics if "loss_nats" in line]
    return check(name, sum(value is None for value in lines) if lines else None, "<=", 0, note="losses not finite")


def memory(evidence: RunEvidence, name: str) -> Check:
    """The largest sample of the device's memory."""
    samples = evidence.values(("memory_bytes",))
    return check(name, max(samples) / BYTES_PER_GB if samples else None, "<", 8.0, note="largest sample, GB")


def feature_dynamics_active(evidence: RunEvidence, name: str) -> Check:
    """Feature dynamics took part."""
    active = sum(value > 0.0 for value in evidence.values(FEATURE_DYNAMICS))
    return check(name, active, ">", 0, note="logging intervals with a loss of feature dynamics")


def feature_dynamics_fell(evidence: RunEvidence, name: str) -> Check:
    """The loss of feature dynamics is lower over its last five values than over its first five."""
    found = [value for value in evidence.values(FEATURE_DYNAMICS) if value > 0.0]
    return fell(name, found[:5], found[-5:], "mean of the last five over that of the first five")


def early_stopping_consistent(evidence: RunEvidence, name: str) -> Check:
    """The run ended where the rule, replayed on its evaluations, says; without a rule it was not stopped."""
    stopping, counters = evidence.recipe.training.early_stopping, evidence.results.counters
    if stopping is None:
        return check(name, float(counters.stopped_early), "<=", 0, note="stopped early without a rule")
    # Where the rule ends the whole run, it counts on over the borders of stages.
    start = 0 if stopping.model_dump().get("ends") == "run" else evidence.last_stage_start
    replayed = stop_step(evidence.results.curves.perplexity, stopping, start)
    expected = replayed if replayed is not None or counters.stopped_early else counters.steps_done
    off = None if expected is None else abs(counters.steps_done - expected)
    return check(name, off, "<=", 0, note="steps off the replayed rule")


def step_budget(evidence: RunEvidence, name: str) -> Check:
    """The recipe asks for enough steps."""
    return check(name, evidence.step_budget, ">=", 5_000)


def fell(name: str, before: Sequence[float], after: Sequence[float], note: str) -> Check:
    """A check that the mean of some later values is below that of earlier ones."""
    first, last = mean_of(before), mean_of(after)
    return check(name, None if first is None or last is None or first == 0.0 else last / first, "<", 1.0, note=note)


def all_parts(name: str, parts: Mapping[str, bool]) -> Check:
    """A check that has several parts: its value is how many hold, and its note says which do."""
    said = "; ".join(f"{part}{'' if holds else ' (no)'}" for part, holds in parts.items())
    return check(name, sum(parts.values()), ">=", len(parts), note=said)


def _headline(version: RecordedVersion) -> float:
    return recorded_facts(version).headline or math.nan


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _shares(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares) or "none"


_V6: dict[str, Test] = {
    "teacher_pretrained": teacher_pretrained,
    "student_learned": partial(student_below, threshold=500.0),
    "ternary": partial(ternary, most_values=None),
    "gradient": gradient,
    "density": partial(density, ends=False),
    "lora": lora,
    "improvement": partial(student_below, threshold=0.5 * _headline("v5")),
}
_V8: dict[str, Test] = {
    "teacher_pretrained": teacher_pretrained,
    "student_learned": partial(student_below, threshold=627.0),
    "ternary": partial(ternary, most_values=3),
    "gradient": gradient,
    "density": partial(density, ends=False),
    "lora": lora,
    "beats_v6": partial(student_below, threshold=_headline("v6")),
    "amplitudes_learned": partial(amplitudes_learned, least=0.05),
}
_V9: dict[str, Test] = {**_V8, "amplitude_health": partial(amplitude_health, ends=False)}
LISTS: dict[CheckList, dict[str, Test]] = {
    "v6": _V6,
    "v8": _V8,
    "v9": _V9,
    "v11.1a": {**_V9, "temperature_end": temperature_end},
    "v11a": {**_V9, "temperature": learned_temperature, "alignment": alignment_fell, "stages": stages_changed},
    "v12.1": {**_V9, "amplitudes_learned": partial(amplitudes_learned, least=0.01), "ctkd": ctkd},
    "v14": {
        "best_perplexity": partial(student_below, threshold=400.0),
        "beats_v13.1": partial(student_below, threshold=_headline("v13.1")),
        "density": partial(density, ends=True),
        "amplitude_health": partial(amplitude_health, ends=True),
        "run_complete": run_complete,
        "losses_finite": losses_finite,
        "memory": memory,
        "feature_dynamics_active": feature_dynamics_active,
        "temperature_moved": temperature_moved,
        "early_stopping_consistent": early_stopping_consistent,
        "feature_dynamics_fell": feature_dynamics_fell,
        "step_budget": step_budget,
    },
}
"""The lists by the version that brought them. What the record does not name, v14's and v11.1a's last, is named here."""
OF_SPIKES = frozenset({"ternary", "gradient", "density", "amplitudes_learned", "amplitude_health"})
