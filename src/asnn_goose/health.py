"""How the training itself went: the health section of results.json, from the lines of metrics.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

from asnn_goose.measurements import Count, Curve, Measured, Record, curve


class Course(Record):
    """One quantity over a run, in few numbers; null where it was never measured or finite."""

    unit: str
    """What it is measured in."""
    first: Measured = None
    last: Measured = None
    least: Measured = None
    most: Measured = None
    mean: Measured = None
    measurements: Count = 0
    """Finite values it was made of."""


class PreviousRun(Record):
    """The newest finished run of the same recipe beside this one."""

    folder: str
    """Its run folder's name."""
    device: str | None = None
    """What it ran on."""
    tokens_per_second: Measured = None
    """How fast it trained."""
    speed_ratio: Measured = None
    """This run's tokens per second over its; null on another device, where it would say nothing of the code."""


class Health(Record):
    """How the training itself went; metrics.jsonl has every value by logging interval or evaluation."""

    gradient_norm: Course = Course(unit="norm of the mean gradient, before clipping")
    clip_rate: Course = Course(unit="fraction of steps")
    update_to_weight: Course = Course(unit="norm of a step over norm of the weights")
    """Of up to 16 matrices, averaged; about 1e-3 is usual at the peak learning rate."""
    scaler_scale: Course = Course(unit="factor on the loss")
    """Of the gradient scaler, which fp16 alone has."""
    tokens_per_second: Course = Course(unit="tokens per second")
    train_validation_gap: Course = Course(unit="nats per token")
    """Cross-entropy at temperature 1 on held-out text less that of the logging interval before, on training text."""
    top1_agreement: Course = Course(unit="fraction of held-out tokens")
    """Where student and teacher find the same next token likeliest."""
    held_out_kl: Course = Course(unit="nats per token")
    """KL(teacher || student) at temperature 1."""
    previous_run: PreviousRun | None = None
    """Null where there is none."""


def course(found: Curve, unit: str) -> Course:
    """A curve in few numbers, of its finite values."""
    values = [value for value in found.values if value is not None]
    if not values:
        return Course(unit=unit)
    mean = sum(values) / len(values)
    return Course(
        unit=unit, first=values[0], last=values[-1], least=min(values), most=max(values), mean=mean,
        measurements=len(values),
    )  # fmt: skip


def training_health(metrics: Sequence[Mapping[str, Any]], previous: PreviousRun | None = None) -> Health:
    """The health section of a run from its metrics.

    Args:
        metrics: Lines of metrics.jsonl.
        previous: The run before it.
    """
    keys = {
        "gradient_norm": "gradient_norm",
        "clip_rate": "clip_rate",
        "update_to_weight": "update_to_weight",
        "scaler_scale": "scaler_scale",
        "tokens_per_second": "tokens_per_second",
        "train_validation_gap": "train_validation_gap_nats",
        "top1_agreement": "top1_agreement",
        "held_out_kl": "held_out_kl_nats",
    }
    units = Health()
    courses = {name: course(curve(metrics, key), getattr(units, name).unit) for name, key in keys.items()}
    return Health(**courses, previous_run=previous)
