"""Numbers of an objective that change while a student is distilled."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from asnn_goose.config_text import Section, stated_fields

NotNegative = Annotated[float, Field(ge=0.0)]
Unit = Literal["share", "steps"]


class Course(Section):
    """From one value to another; what holds before `begin` and after `end` are these values."""

    initial: NotNegative
    """Value up to `begin`."""
    final: NotNegative
    """Value from `end` on."""
    begin: NotNegative = 0.0
    """Where the change begins, in `unit`."""
    end: NotNegative | None = None
    """Where it ends, in `unit`; null is the end of the budget."""
    unit: Unit = "share"
    """What `begin` and `end` count: shares of the distilling budget, 0 to 1, or its optimizer steps."""

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> "Course":
        latest = 1.0 if self.unit == "share" else float("inf")
        end = latest if self.end is None else self.end
        if not self.begin < end <= latest:
            room = "0 <= begin < end <= 1, in shares of the budget (or unit=steps)"
            raise ValueError(
                f"a schedule with begin={self.begin:g} and end={'null' if self.end is None else f'{self.end:g}'}: give "
                + (room if self.unit == "share" else "0 <= begin < end, in steps")
            )
        return self

    @property
    def numbers(self) -> tuple[float, ...]:
        """The values it goes between."""
        return self.initial, self.final


class LinearSchedule(Course):
    """In a straight line."""

    kind: Literal["linear"] = "linear"


class CosineSchedule(Course):
    """Along half a cosine, slow at both ends."""

    kind: Literal["cosine"] = "cosine"


class StepSchedule(Section):
    """From value to value at once."""

    kind: Literal["step"] = "step"
    values: tuple[NotNegative, ...] = Field(strict=False, min_length=1)
    """The values, in order."""
    at: tuple[NotNegative, ...] = Field(default=(), strict=False)
    """Where each value but the first begins, in `unit`; an empty list is parts of equal length."""
    unit: Unit = "share"
    """What `at` counts: shares of the distilling budget, 0 to 1, or its optimizer steps."""

    @model_validator(mode="after")
    def _places_ascend(self) -> "StepSchedule":
        if not self.at and self.unit == "share":
            return self
        ascending = all(before < after for before, after in zip(self.at, self.at[1:], strict=False))
        if len(self.at) != len(self.values) - 1 or not ascending or (self.unit == "share" and max(self.at) > 1.0):
            raise ValueError(
                f"a step schedule of {len(self.values)} values with at={list(self.at)}: give {len(self.values) - 1} "
                f"ascending places in {'shares of the budget, 0 to 1' if self.unit == 'share' else 'steps'}"
            )
        return self

    @property
    def numbers(self) -> tuple[float, ...]:
        """The values it goes through."""
        return self.values


AnySchedule = LinearSchedule | CosineSchedule | StepSchedule
Schedule = Annotated[AnySchedule, Field(discriminator="kind")]
_Schedules = (
    Annotated[LinearSchedule, Tag("linear")]
    | Annotated[CosineSchedule, Tag("cosine")]
    | Annotated[StepSchedule, Tag("step")]
)


def number_tag(value: Any) -> str | None:
    """Which a value is: a number, or the kind of schedule that a mapping or section states."""
    if not isinstance(value, dict | Section):
        return "number"
    kind = stated_fields(value).get("kind")
    return kind if isinstance(kind, str) else None


_Number = Discriminator(
    number_tag, custom_error_type="schedule", custom_error_message="a schedule needs `kind`: linear, cosine or step"
)
Weight = Annotated[Annotated[NotNegative, Tag("number")] | _Schedules, _Number]
"""A number of at least 0, or a schedule of such numbers."""
PositiveWeight = Annotated[Annotated[float, Field(gt=0.0), Tag("number")] | _Schedules, _Number]
"""A number above 0, or a schedule."""


def numbers_of(value: float | AnySchedule) -> tuple[float, ...]:
    """The number itself, or those a schedule goes between or through."""
    return (value,) if isinstance(value, int | float) else value.numbers


def scaled(value: float | AnySchedule, factor: float) -> float | AnySchedule:
    """A number, or each number of a schedule, times a factor."""
    if isinstance(value, int | float):
        return factor * value
    if isinstance(value, StepSchedule):
        return value.model_copy(update={"values": tuple(factor * number for number in value.values)})
    return value.model_copy(update={"initial": factor * value.initial, "final": factor * value.final})
