"""What a validation of spikes says of them: the recorded gates, by two kinds of estimators, and the sound criteria."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from asnn_goose.measurements import Record, finite_or_none

CriterionName = Literal["informative", "learned", "kept", "used", "aligned"]
"""What the sound verdict asks for, one by one; `evaluation.spike_verdicts` defines each."""


def _six_digits(value: Any) -> Any:
    finite = finite_or_none(value)
    return float(f"{finite:.6g}") if isinstance(finite, float) else finite


Rounded = Annotated[float | None, BeforeValidator(_six_digits)]
"""A measured number to six digits, beyond which devices differ; null if nothing was measured or it was not finite."""


class RecordedEstimates(Record):
    """The five quantities that the recorded validator judged by."""

    dead_fraction: Rounded = None
    """Channels that spike at less than one token in a thousand, 0 to 1."""
    saturated_fraction: Rounded = None
    """Channels that spike at every token, 0 to 1."""
    mutual_information_bits: Rounded = None
    """Of spikes about the teacher's hidden state."""
    cka: Rounded = None
    """Of spikes with the teacher's hidden state."""
    firing_rate: Rounded = None
    """Fraction of spikes that are not 0."""


class Gate(Record):
    """One gate of the recorded validator, and how it went."""

    name: str
    """What is asked for."""
    estimator: Literal["sound", "recorded"]
    """Whether the value is ours, or what the recorded estimators make of the same spikes."""
    value: Rounded
    """What was measured; null fails."""
    threshold: str
    """What it has to be."""
    passed: bool
    """Whether it is."""


class RecordedVerdict(Record):
    """What the recorded gates say; they were never calibrated, and judge nothing here."""

    passed: bool
    """Whether every gate holds by sound estimates."""
    passed_as_recorded: bool | None = None
    """Whether every gate holds by the recorded estimators; null where they were not computed."""
    gates: tuple[Gate, ...] = Field(default=(), strict=False)


class Criterion(Record):
    """One thing that spikes must show, and whether they do."""

    name: CriterionName
    """Its word."""
    value: Rounded
    """What was measured; null fails."""
    threshold: str
    """What it has to be."""
    passed: bool
    """Whether it is."""
    meaning: str
    """What that says of the spikes."""
    note: str = ""
    """Which site decides, or what is missing."""


class SoundVerdict(Record):
    """Whether spikes carry, by training, what the student uses: all criteria have to hold."""

    passed: bool
    """Whether all do."""
    criteria: tuple[Criterion, ...] = Field(default=(), strict=False)
