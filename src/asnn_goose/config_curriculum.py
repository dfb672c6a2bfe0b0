"""Which rows a run trains on when: a data curriculum that goes from easy rows to hard ones."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from asnn_goose.config_text import Section

Temperature = Annotated[float, Field(gt=0.0, le=100.0)]


class Pretraining(Section):
    """Steps on all rows before their difficulty is measured, with an AdamW of their own, at a constant rate, unclipped.

    They are no part of the training budget. As recorded for POCL (v13), decay is on all weights.
    """

    steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=8, ge=1)
    """Rows of a step."""
    learning_rate: float = Field(default=3e-4, gt=0.0)
    """Learning rate."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decay of all weights."""
    temperature: Temperature = 2.0
    """Temperature of the KL term, the only one."""
    keep: bool = True
    """Go on from the weights they leave; false goes back to those before, so that they only judge the rows."""


class DivergenceDifficulty(Section):
    """KL(teacher || student) plus the student's cross-entropy against the teacher's most probable token."""

    kind: Literal["kl_ce"] = "kl_ce"
    temperature: Temperature = 1.0
    """Divides both models' logits."""


class LossDifficulty(Section):
    """The cross-entropy of the row's own next tokens."""

    kind: Literal["loss"]
    of: Literal["student", "teacher"] = "student"
    """Whose; the teacher's needs no pretraining to mean something."""


class ConfidenceDifficulty(Section):
    """1 minus the mean of the largest probability at each token."""

    kind: Literal["confidence"]
    of: Literal["student", "teacher"] = "student"
    """Whose; the teacher's needs no pretraining to mean something."""


class StepPacing(Section):
    """Parts of the run on parts of the rows, both equal, part p ending with step round(p / parts * steps)."""

    kind: Literal["step"] = "step"
    parts: int = Field(default=3, ge=1, le=100)
    """Number of parts."""
    subsets: Literal["cumulative", "disjoint"] = "cumulative"
    """`cumulative` opens the easiest p / parts of the rows in part p; `disjoint` closes the easier ones again."""
    durations: tuple[Annotated[float, Field(gt=0.0)], ...] | None = Field(default=None, strict=False)
    """How the run is shared out among the parts, one number each; null is equally."""
    temperatures: tuple[Temperature, ...] | None = Field(default=None, strict=False)
    """The objective's temperature in each part, rising as recorded (1, 1.5, 2) or falling; null keeps its own."""

    @model_validator(mode="after")
    def _one_number_a_part(self) -> "StepPacing":
        for name, given in (("durations", self.durations), ("temperatures", self.temperatures)):
            if given is not None and len(given) != self.parts:
                raise ValueError(
                    f"curriculum.pacing.{name}={list(given)}: give one number for each of curriculum.pacing.parts "
                    f"({self.parts})"
                )
        return self


class LinearPacing(Section):
    """The share of the rows that is open, the easiest ones, rises evenly."""

    kind: Literal["linear"]
    start: float = Field(default=0.1, gt=0.0, le=1.0)
    """Share that is open at first."""
    until: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of the run after which all rows are open."""


class ExponentialPacing(Section):
    """The share of the rows that is open, the easiest ones, grows by the same factor in the same time."""

    kind: Literal["exponential"]
    start: float = Field(default=0.1, gt=0.0, le=1.0)
    """Share that is open at first."""
    until: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of the run after which all rows are open."""


class Curriculum(Section):
    """Rows in the order of their difficulty, measured once before training, and when each of them is open.

    Among those that are open rows are drawn as always, shuffled, epoch by epoch. What happens when is counted in
    optimizer steps of the whole run. As it stands, but for pretraining and temperatures, this is POCL as recorded.
    """

    difficulty: Annotated[DivergenceDifficulty | LossDifficulty | ConfidenceDifficulty, Field(discriminator="kind")] = (
        DivergenceDifficulty()
    )
    """What is hard; a mean over the row's tokens, in nats or as a share."""
    batches: int | None = Field(default=50, ge=1)
    """Batches of training.batch_size rows, drawn from all, that are measured; the others are left out of the run. Null
    measures all rows."""
    pretraining: Pretraining | None = None
    """Null measures with the student as it is built and calibrated."""
    pacing: Annotated[StepPacing | LinearPacing | ExponentialPacing, Field(discriminator="kind")] = StepPacing()
    """When which rows are open."""

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """The temperature of each part, if parts have one of their own."""
        return self.pacing.temperatures if isinstance(self.pacing, StepPacing) else None
