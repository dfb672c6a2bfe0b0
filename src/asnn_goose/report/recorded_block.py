"""What the record says of the version that a run repeats, with the run's own figures beside it."""

from collections.abc import Sequence

from asnn_goose.checks import quotient
from asnn_goose.config_recorded import Recorded, RecordedTarget
from asnn_goose.results import Results

EMPTY = "–"
BYTES_PER_GB = 1e9


def recorded_beside(facts: Recorded, results: Results) -> list[tuple[str, str, str]]:
    """Rows of what it is, what is recorded and what the run has; what neither knows is left out."""
    recorded, ours = recorded_facts_by_name(facts), our_facts_by_name(facts, results)
    rows = [(name, recorded.get(name, EMPTY), ours.get(name, "")) for name in recorded]
    return [row for row in rows if row[1] not in ("", EMPTY) or row[2] not in ("", EMPTY)]


def recorded_facts_by_name(facts: Recorded) -> dict[str, str]:
    """What the record says of a version, by the name that it has on the report page; a dash is not recorded."""
    size, temperature, checks = facts.size, facts.temperature, facts.checks
    best = None if facts.best is None else quotient(facts.best.perplexity, facts.teacher_perplexity)
    stated = "" if size is None or size.stated is None else f" (recorded as {size.stated})"
    return {
        "Outcome": f"{facts.status}, archived" if facts.archived else facts.status,
        "Date": facts.date or EMPTY,
        "Target": show_target(facts.target),
        "Width × layers": show_size(facts),
        "Parameters": EMPTY if size is None else f"{size.parameters:,}{stated}",
        "Teacher's perplexity": show_number(facts.teacher_perplexity),
        "Best evaluation": about(facts, "best", show_best(facts)),
        "Best ÷ teacher": about(facts, "best", show_number(best)),
        "After test-time training": about(facts, "headline", show_headline(facts)),
        "After test-time training ÷ teacher": about(facts, "headline", show_number(facts.ratio_to_teacher)),
        "Ended at step": EMPTY if facts.stop_step is None else f"{facts.stop_step:,}",
        "Perplexity by step": _course(facts.trajectory),
        "Temperature": EMPTY if temperature is None else _span(temperature.start, temperature.end),
        "Temperature by step": EMPTY if temperature is None else _course(temperature.path),
        "Lambda by step": _course(facts.lambda_path),
        "Feature dynamics' loss": EMPTY if facts.feature_dynamics is None else _span(*facts.feature_dynamics),
        "Spike density": EMPTY if facts.density is None else f"{facts.density:.3f}",
        "Amplitudes": about(facts, "amplitudes", _ends(facts.amplitudes or ())),
        "Tokens trained on": EMPTY if facts.tokens is None else f"{facts.tokens:,}",
        "Memory": EMPTY if facts.memory_gb is None else about(facts, "memory_gb", f"{facts.memory_gb:.2f} GB"),
        "Time": EMPTY if facts.minutes is None else about(facts, "minutes", f"{facts.minutes:.1f} min"),
        "Device": facts.device or EMPTY,
        "Checks passed": EMPTY if checks is None or checks.passed is None else f"{checks.passed} of {checks.exist}",
        **{f"Another run, {run.name}": f"{run.headline:,.2f} ({run.status}): {run.lesson}" for run in facts.other_runs},
        "Lesson recorded": facts.lesson,
        "From the public repository": ", ".join(facts.public),
        "Computed": ", ".join(facts.computed),
        "Note": facts.note,
    }


def our_facts_by_name(facts: Recorded, results: Results) -> dict[str, str]:
    """What a run of the version has of the same kind, by the same names."""
    perplexities, teacher = results.perplexities, results.teacher.perplexity
    step = "" if perplexities.best_step is None else f" @ {perplexities.best_step:,}"
    amplitudes = [site.amplitude for site in results.spikes.layers if site.amplitude is not None]
    peak, seconds = results.memory.peak_bytes, results.hardware.seconds
    own = [check for check in results.checks if facts.checks and check.name.startswith(f"{facts.checks.list}: ")]
    temperatures = [value for value in results.curves.temperature.values if value is not None]
    started = temperatures[0] if temperatures else results.temperature.final
    return {
        "Parameters": EMPTY if results.student.parameters is None else f"{results.student.parameters:,}",
        "Teacher's perplexity": show_number(teacher),
        "Best evaluation": show_number(perplexities.best) + step,
        "Best ÷ teacher": show_number(results.ratio.to_teacher),
        "After test-time training": show_number(perplexities.after_adaptation),
        "After test-time training ÷ teacher": show_number(quotient(perplexities.after_adaptation, teacher)),
        "Ended at step": f"{results.counters.steps_done:,}",
        "Temperature": _span(started, results.temperature.final),
        "Spike density": EMPTY if results.spikes.density is None else f"{results.spikes.density:.3f}",
        "Amplitudes": _ends(amplitudes),
        "Tokens trained on": EMPTY if results.hardware.tokens is None else f"{results.hardware.tokens:,}",
        "Memory": EMPTY if peak is None else f"{peak / BYTES_PER_GB:.2f} GB, the peak",
        "Time": EMPTY if seconds is None else f"{seconds / 60:.1f} min",
        "Device": results.hardware.device or EMPTY,
        "Checks passed": f"{sum(check.passed for check in own)} of {len(own)}" if own else EMPTY,
    }


def about(facts: Recorded, field: str, text: str) -> str:
    """The text, with `~` before it where the record gives the field as about so much."""
    return f"~{text}" if field in facts.approximate and text != EMPTY else text


def show_number(value: float | None) -> str:
    """Two decimals and thousands apart; a dash for nothing."""
    return EMPTY if value is None else f"{value:,.2f}"


def show_size(facts: Recorded) -> str:
    """Width times layers."""
    return EMPTY if facts.size is None else f"{facts.size.width}×{facts.size.layers}"


def show_best(facts: Recorded) -> str:
    """The best evaluation and its step."""
    return EMPTY if facts.best is None else f"{show_number(facts.best.perplexity)} @ {facts.best.step:,}"


def show_headline(facts: Recorded) -> str:
    """The headline; one at the record's cap says at least."""
    return f"≥ {facts.headline:,.0f} (cap)" if facts.is_capped else show_number(facts.headline)


def show_target(target: RecordedTarget | None) -> str:
    """What was to be reached, and whether it was."""
    if target is None:
        return ""
    ends = ""
    if target.below is not None:
        ends = f"{'< ' if target.least is None else f'{target.least:g} to '}{target.below:g}"
    met = {None: "", True: "met", False: "missed"}[target.met]
    return ", ".join(part for part in (ends, target.note, met) if part)


def _span(first: float | None, last: float | None) -> str:
    if first is None and last is None:
        return EMPTY
    return " → ".join(EMPTY if value is None else f"{value:.4g}" for value in (first, last))


def _ends(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}" if values else EMPTY


def _course(pairs: Sequence[tuple[int, float]]) -> str:
    return "; ".join(f"{step:,}: {value:g}" for step, value in pairs) or EMPTY
