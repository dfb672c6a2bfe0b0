"""What every measured record is made of: numbers that may be missing, and curves over steps."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def finite_or_none(value: Any) -> Any:
    """The value, or None in place of NaN and the infinities, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measured = Annotated[float | None, BeforeValidator(finite_or_none)]
"""A measured number; null where nothing was measured or the measurement was not finite."""

Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """A part of the results: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Curve(Record):
    """One quantity over optimizer steps."""

    steps: tuple[int, ...] = Field(default=(), strict=False)
    """Optimizer steps, ascending."""
    values: tuple[Measured, ...] = Field(default=(), strict=False)
    """The quantity at each step; null where it was not finite."""

    @model_validator(mode="after")
    def _one_value_a_step(self) -> Self:
        if len(self.steps) != len(self.values):
            raise ValueError(f"{len(self.steps)} steps have {len(self.values)} values")
        return self


class Curves(Record):
    """How the run went."""

    loss: Curve = Curve()
    """Training objective, nats per token."""
    perplexity: Curve = Curve()
    """Periodic evaluations of the student."""
    learning_rate: Curve = Curve()
    """Learning rate of the step."""
    density: Curve = Curve()
    """Fraction of spikes that are not 0, over all layers and sites."""
    temperature: Curve = Curve()
    """Distillation temperature."""


def curve(metrics: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """One key of metrics.jsonl over steps; a line without the key adds no point."""
    points = [(line["step"], line[key]) for line in metrics if key in line]
    return Curve(steps=tuple(step for step, _ in points), values=tuple(value for _, value in points))


def site_columns(figures: Mapping[str, Mapping[str, float]]) -> dict[str, list[Any]]:
    """Figures by site as metrics.jsonl holds them: the sites, and a list as long for each figure, to six digits."""
    names = next(iter(figures.values()), {})
    columns = {name: [finite_or_none(float(f"{figures[site][name]:.6g}")) for site in figures] for name in names}
    return {"sites": list(figures), **columns}


def site_curve(metrics: Sequence[Mapping[str, Any]], site: str, name: str) -> Curve:
    """One figure of one site over steps, from lines of metrics.jsonl that have it."""
    lines = [line for line in metrics if site in line.get("spikes", {}).get("sites", ())]
    values = [line["spikes"][name][line["spikes"]["sites"].index(site)] for line in lines]
    return Curve(steps=tuple(line["step"] for line in lines), values=tuple(values))


def curves_from_metrics(metrics: Sequence[Mapping[str, Any]]) -> Curves:
    """The run's curves from the keys loss_nats, evaluation_perplexity, learning_rate, density and temperature."""
    return Curves(
        loss=curve(metrics, "loss_nats"),
        perplexity=curve(metrics, "evaluation_perplexity"),
        learning_rate=curve(metrics, "learning_rate"),
        density=curve(metrics, "density"),
        temperature=curve(metrics, "temperature"),
    )
