"""The temperature of distillation: given, scheduled, or learned with or against the student."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from asnn_goose.config_schedules import PositiveWeight, Schedule, numbers_of
from asnn_goose.config_text import Section

HIGHEST = 100.0


class FixedTemperature(Section):
    """One temperature for the whole run (Hinton et al. 2015)."""

    kind: Literal["fixed"] = "fixed"
    value: float = Field(default=2.0, gt=0.0, le=HIGHEST)
    """Divides teacher and student logits; the loss is multiplied by its square."""


class ScheduledTemperature(Section):
    """A temperature that changes as stated."""

    kind: Literal["scheduled"] = "scheduled"
    schedule: Schedule
    """Its course over the distilling budget."""

    @model_validator(mode="after")
    def _is_a_temperature(self) -> "ScheduledTemperature":
        wrong = [value for value in self.schedule.numbers if not 0.0 < value <= HIGHEST]
        if wrong:
            raise ValueError(
                f"objective.temperature.schedule reaches {wrong[0]:g}: give temperatures above 0, at most {HIGHEST:g}"
            )
        return self


class TrainedTemperature(Section):
    """What both temperatures that learn have."""

    start: float = Field(default=2.0, gt=0.0, le=HIGHEST)
    """Temperature at the beginning; a stage goes on from what the stage before it learned."""
    optimizer: Literal["own", "recorded"] = "own"
    """`own` lets it train without decay and outside of gradient clipping; `recorded` as the recorded notebooks did,
    with the decay of the matrices and inside the clipped norm."""
    learning_rate: float | None = Field(default=None, gt=0.0)
    """Its peak learning rate; null is that of new weights."""


class Anchor(Section):
    """Holds a learned temperature near a target: adds weight * (T - target)^2 to the loss of each token."""

    weight: float = Field(default=0.1, gt=0.0)
    """Factor, beside the other terms in nats."""
    target: PositiveWeight | None = None
    """The temperature it is drawn to, or its schedule; null is `start`, also in a stage that begins elsewhere."""


class LearnedTemperature(TrainedTemperature):
    """A temperature that minimizes the loss together with the student, by its logarithm.

    T^2 KL falls towards both ends, so without an anchor it runs to one of its bounds.
    """

    kind: Literal["learned"] = "learned"
    lower: float = Field(default=1.0, gt=0.0, le=HIGHEST)
    """Lowest temperature."""
    upper: float = Field(default=10.0, gt=0.0, le=HIGHEST)
    """Highest temperature."""
    clamp: Literal["projected", "recorded"] = "projected"
    """`projected` moves its logarithm back to the bound after each step, where every gradient still counts; `recorded`
    clamps exp(log T) itself, whose gradient is 0 beyond a bound: what has once passed it never comes back."""
    learning_rate: float | None = Field(default=0.01, gt=0.0)
    """Its peak learning rate; null is that of new weights."""
    anchor: Anchor | None = Anchor()
    """Null leaves it to the loss alone."""
    entropy_weight: float = Field(default=0.0, ge=0.0)
    """Subtracts so much of the entropy of the teacher's softened distribution, in nats per token: soft targets pay."""

    @model_validator(mode="after")
    def _starts_and_ends_within(self) -> "LearnedTemperature":
        _check_bounds(self.lower, self.upper)
        if not self.lower <= self.start <= self.upper:
            raise ValueError(_outside("start", self.start, self.lower, self.upper))
        targets = () if self.anchor is None or self.anchor.target is None else numbers_of(self.anchor.target)
        for target in targets:
            if not self.lower <= target <= self.upper:
                raise ValueError(_outside("anchor.target", target, self.lower, self.upper))
        return self


class AdversarialTemperature(TrainedTemperature):
    """A temperature that learns against the student: T = lower + (upper - lower) * sigmoid(raw).

    The gradient that reaches `raw` is turned round by a gradient reversal layer of strength lambda, which is 0 for the
    first `warmup_share` of the distilling budget and then rises along half a cosine (CTKD, Li et al. 2023).
    """

    kind: Literal["ctkd"] = "ctkd"
    lower: float = Field(default=1.0, gt=0.0, le=HIGHEST)
    """Temperature that it never quite reaches downwards."""
    upper: float = Field(default=5.0, gt=0.0, le=HIGHEST)
    """Temperature that it never quite reaches upwards."""
    lambda_max: float = Field(default=1.0, gt=0.0)
    """Strength of the reversal at the end of the budget."""
    warmup_share: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Share of the budget during which lambda is 0."""
    gradient: Literal["reversed", "plain", "sign"] = "reversed"
    """`reversed` maximizes the loss; `plain` takes the same gradient without turning it; `sign` feeds lambda times a
    constant that lowers the temperature, and nothing that the student or the teacher knows."""

    @model_validator(mode="after")
    def _starts_within(self) -> "AdversarialTemperature":
        _check_bounds(self.lower, self.upper)
        if not self.lower < self.start < self.upper:
            raise ValueError(_outside("start", self.start, self.lower, self.upper))
        return self


Temperature = Annotated[
    FixedTemperature | ScheduledTemperature | LearnedTemperature | AdversarialTemperature, Field(discriminator="kind")
]


def _check_bounds(lower: float, upper: float) -> None:
    if lower >= upper:
        raise ValueError(f"objective.temperature has lower={lower:g} and upper={upper:g}: give lower < upper")


def _outside(name: str, value: float, lower: float, upper: float) -> str:
    return f"objective.temperature.{name}={value:g} is outside its bounds: give one between {lower:g} and {upper:g}"
