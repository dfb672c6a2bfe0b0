"""The report: one HTML file that reads on its own, without network, scripts or other files."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from asnn_goose.checks import quotient
from asnn_goose.health import Health
from asnn_goose.report.recorded_block import recorded_beside
from asnn_goose.results import Results

NOT_MEASURED = "not measured"
BYTES_PER_GIB = 1024**3


def report_page(results: Results, environment: Mapping[str, Any], recipe_yaml_text: str) -> str:
    """The whole report of a run as the text of one HTML file.

    Args:
        results: What the run measured; what is null reads as `not measured`.
        environment: The content of environment.json; nested mappings are flattened to dotted names.
        recipe_yaml_text: The resolved recipe.
    """
    templates = Environment(
        loader=PackageLoader("asnn_goose.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"figures": format_number, "count": format_count, "percent": format_percent}
    return templates.get_template("report.html.jinja").render(
        results=results,
        environment=flatten(environment),
        recipe=recipe_yaml_text,
        facts=run_facts(results),
        repeated=beside_the_record(results),
        health=health_rows(results.health),
        adapted_ratio=quotient(results.perplexities.after_adaptation, results.teacher.perplexity),
        controls=[
            (name, value, quotient(value, results.teacher.perplexity)) for name, value in measured_controls(results)
        ],
    )


def beside_the_record(results: Results) -> list[tuple[str, str, str]]:
    """What the record says of the version that the run repeats, and what the run has; nothing where it repeats none."""
    repeated = results.comparison.repeated
    return [] if repeated is None else recorded_beside(repeated, results)


def health_rows(health: Health) -> list[tuple[str, str, list[str]]]:
    """Each quantity of a run's health: its name, unit, first, last, least, most and mean."""
    named = {
        "Gradient norm": health.gradient_norm,
        "Steps clipped": health.clip_rate,
        "Step ÷ weight": health.update_to_weight,
        "Loss scale": health.scaler_scale,
        "Tokens per second": health.tokens_per_second,
        "Held-out loss over training loss": health.train_validation_gap,
        "Same likeliest token as the teacher": health.top1_agreement,
        "KL from the teacher, held out": health.held_out_kl,
    }
    return [
        (name, entry.unit, [_digits(value) for value in (entry.first, entry.last, entry.least, entry.most, entry.mean)])
        for name, entry in named.items()
        if entry.measurements
    ]


def _digits(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:,.4g}"


def measured_controls(results: Results) -> list[tuple[str, float]]:
    """The controls of a run that were measured: what each is, and its perplexity."""
    controls = results.controls
    named = (("weights only copied", controls.untrained_conversion), ("random weights", controls.random_weights))
    return [(name, perplexity) for name, perplexity in named if perplexity is not None]


def format_number(value: float | None, decimals: int = 2) -> str:
    """A number with fixed decimals and its thousands apart, or `not measured`."""
    return NOT_MEASURED if value is None else f"{value:,.{decimals}f}"


def format_count(value: int | None) -> str:
    """A whole number with its thousands apart, or `not measured`."""
    return NOT_MEASURED if value is None else f"{value:,}"


def format_percent(value: float | None) -> str:
    """A fraction as a percentage with one decimal, or `not measured`."""
    return NOT_MEASURED if value is None else f"{value:.1%}"


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names to texts; an empty value is left out."""
    flat: dict[str, str] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def run_facts(results: Results) -> dict[str, str]:
    """What the run took, by the name it has on the page."""
    hardware = results.hardware
    return {
        "Device": hardware.device or NOT_MEASURED,
        "Time": NOT_MEASURED if hardware.seconds is None else format_duration(hardware.seconds),
        "Tokens trained on": format_count(hardware.tokens),
        "Tokens per second": format_number(results.throughput.tokens_per_second, 0),
        "Share of peak arithmetic": format_percent(results.throughput.mfu),
        "Peak memory": format_gibibytes(hardware.peak_memory_bytes),
        "Mean memory": format_gibibytes(hardware.mean_memory_bytes),
        "Steps": format_count(results.counters.steps_done),
        "Steps skipped": format_count(results.counters.steps_skipped),
        "Roll-backs": format_count(results.counters.rolled_back),
        "Ended by": results.stop_reason.replace("_", " "),
        "Final temperature": format_number(results.temperature.final),
    }


def format_gibibytes(value: int | None) -> str:
    """Bytes in GiB, or `not measured`."""
    return NOT_MEASURED if value is None else f"{value / BYTES_PER_GIB:.2f} GiB"


def format_duration(seconds: float) -> str:
    """Seconds below a minute, then minutes and seconds, then hours and minutes."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
