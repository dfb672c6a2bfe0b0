"""What every measured record is made of: numbers that may be missing, and curves over steps."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from asnn_goose.errors import RunFolderError


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


Kind = TypeVar("Kind", bound=Record)


def read_record(kind: type[Kind], version: int, text: str, source: str, command: str) -> Kind:
    """A record with a `schema_version` from a JSON text.

    Args:
        kind: What it is a record of.
        version: The schema version that is read.
        text: The JSON.
        source: What the text is called where it is refused.
        command: What makes it anew.

    Raises:
        RunFolderError: The text is no JSON, has another schema version, or lacks or adds a key.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise RunFolderError(f"{source} is not JSON ({error}); run `{command}` again") from error
    found = fields.get("schema_version") if isinstance(fields, dict) else None
    if found != version:
        raise RunFolderError(
            f"{source} has schema version {found!r}, this asnn-goose reads {version}; "
            "read it with the version that wrote it"
        )
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise RunFolderError(f"{source}: {path}: {first['msg']}; the file was changed by hand") from error


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
