"""What a run has to reach: a measured value against a threshold, decided once and kept with both."""

from typing import Literal

from asnn_goose.measurements import Measured, Record, finite_or_none

Comparison = Literal["<", "<=", ">", ">=", "inside", "within"]
"""How a value stands to its threshold; `inside` is between two without their ends, `within` with them."""


class Check(Record):
    """One thing the run had to reach; `check` decides it."""

    name: str
    """What is checked."""
    value: Measured
    """What was measured; null fails."""
    comparison: Comparison
    """How the value must stand to the threshold."""
    threshold: float
    """What it is compared with, in the value's unit; the lower end where there are two."""
    upper: float | None = None
    """The upper end, where the value has to lie between two."""
    passed: bool
    """Whether value, comparison and threshold hold."""
    warns: bool = False
    """Whether a failure is only a warning, which `--strict` lets pass."""
    note: str = ""
    """What the value does not say itself, such as the parts of a check that has several."""

    @property
    def required(self) -> str:
        """What the value has to be, in words."""
        if self.upper is None:
            return f"{self.comparison} {self.threshold:g}"
        ends = "()" if self.comparison == "inside" else "[]"
        return f"in {ends[0]}{self.threshold:g}, {self.upper:g}{ends[1]}"

    @property
    def outcome(self) -> Literal["passed", "failed", "warning"]:
        """How it ended, in a word."""
        return "passed" if self.passed else "warning" if self.warns else "failed"


def check(
    name: str,
    value: float | None,
    comparison: Literal["<", "<=", ">", ">="],
    threshold: float,
    *,
    note: str = "",
    warns: bool = False,
) -> Check:
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
    return Check(
        name=name, value=measured, comparison=comparison, threshold=threshold, passed=passed, warns=warns, note=note
    )


def check_between(
    name: str, value: float | None, lower: float, upper: float, *, ends: bool = True, note: str = ""
) -> Check:
    """A decided check of a value between two, which may be one of them where the `ends` count."""
    measured = finite_or_none(value)
    passed = measured is not None and (lower <= measured <= upper if ends else lower < measured < upper)
    comparison: Comparison = "within" if ends else "inside"
    return Check(
        name=name, value=measured, comparison=comparison, threshold=lower, upper=upper, passed=passed, note=note
    )


def quotient(numerator: float | None, denominator: float | None) -> float | None:
    """One measurement over another; None where either is missing or the second is 0."""
    return None if numerator is None or not denominator else numerator / denominator
