"""What a run has to reach: a measured value against a threshold, decided once and kept with both."""

from typing import Literal

from asnn_goose.measurements import Measured, Record, finite_or_none


class Check(Record):
    """One thing the run had to reach; `check` decides it."""

    name: str
    """What is checked."""
    value: Measured
    """What was measured; null fails."""
    comparison: Literal["<", "<=", ">", ">="]
    """How the value must stand to the threshold."""
    threshold: float
    """What it is compared with, in the value's unit."""
    passed: bool
    """Whether value, comparison and threshold hold."""


def check(name: str, value: float | None, comparison: Literal["<", "<=", ">", ">="], threshold: float) -> Check:
    """A decided check; a value that was not measured, or is not finite, fails."""
    measured = finite_or_none(value)
    passed = (
        measured is not None
        and {
            "<": measured < threshold,
            "<=": measured <= threshold,
            ">": measured > threshold,
            ">=": measured >= threshold,
        }[comparison]
    )
    return Check(name=name, value=measured, comparison=comparison, threshold=threshold, passed=passed)


def quotient(numerator: float | None, denominator: float | None) -> float | None:
    """One measurement over another; None where either is missing or the second is 0."""
    return None if numerator is None or not denominator else numerator / denominator
