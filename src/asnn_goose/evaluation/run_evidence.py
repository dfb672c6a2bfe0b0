"""What checks judge a run by: its recipe, its figures, the course of its training, and its student's encoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asnn_goose.config import Recipe
from asnn_goose.config_training import EarlyStopping, TrainingBySteps
from asnn_goose.evaluation.encoder_evidence import EncoderEvidence
from asnn_goose.measurements import Curve, curve
from asnn_goose.results import Results

RECORDED_TEACHERS = ("gpt2", "openai-community/gpt2")
TEMPERATURE = ("temperature",)
LAMBDA = ("lambda", "temperature_lambda")
FEATURE_DYNAMICS = ("feature_dynamics", "dynamics_error")
HIDDEN_ALIGNMENT = ("hidden_error",)
"""Keys of metrics.jsonl, the first of which that a run has is read."""


@dataclass(frozen=True)
class RunEvidence:
    """A run as its checks see it.

    Attributes:
        recipe: The resolved recipe.
        results: What was measured, without checks.
        metrics: Lines of metrics.jsonl.
        encoders: What the student's encoders are and do.
        vocabulary: Words of the student's head.
        reloaded_perplexity: Of the best checkpoint, read again from disk.
    """

    recipe: Recipe
    results: Results
    metrics: Sequence[Mapping[str, Any]]
    encoders: EncoderEvidence
    vocabulary: int
    reloaded_perplexity: float | None = None

    @property
    def is_as_recorded(self) -> bool:
        """Whether perplexities compare with the recorded ones: the same teacher under the recorded protocol."""
        return self.results.teacher.name in RECORDED_TEACHERS and self.results.protocol.kind == "recorded"

    def values(self, keys: Sequence[str]) -> tuple[float, ...]:
        """Finite values of the first of some keys that the metrics hold, in the order of the run."""
        for key in keys:
            found = curve(self.metrics, key).values
            if found:
                return tuple(value for value in found if value is not None)
        return ()

    @property
    def step_budget(self) -> int | None:
        """Optimizer steps that the recipe asks for; None where micro-batches have no size yet."""
        training = self.recipe.training
        if isinstance(training, TrainingBySteps):
            return training.steps
        if training.batch_size == "auto":
            return None
        return -(-training.tokens // (training.batch_size * training.accumulation * training.window))

    @property
    def temperature_bounds(self) -> tuple[float, float] | None:
        """Where a temperature that learns has to stay; None where it does not learn."""
        fields = self.recipe.objective.temperature.model_dump()
        if fields["kind"] not in ("learned", "ctkd"):
            return None
        return fields["lower"], fields["upper"]

    @property
    def last_stage_start(self) -> int:
        """Optimizer step at which the last stage began."""
        return sum(stage.steps or 0 for stage in self.results.stages[:-1])


def last_share(values: Sequence[float], share: float) -> Sequence[float]:
    """The last part of some values, at least one of them if there is one."""
    return values[-max(1, round(share * len(values))) :]


def mean_of(values: Sequence[float]) -> float | None:
    """Their mean; None of nothing."""
    return sum(values) / len(values) if values else None


def deviation_of(values: Sequence[float]) -> float | None:
    """Their standard deviation, over the number of them; None of nothing."""
    mean = mean_of(values)
    return None if mean is None else (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5


def stop_step(evaluations: Curve, stopping: EarlyStopping, start: int = 0) -> int | None:
    """The step at which early stopping ends a stage; None where it runs on.

    It ends at the first evaluation that lies `patience_steps` or more behind the last one below the reference less
    `min_delta`, which then became the reference.

    Args:
        evaluations: Perplexities of periodic evaluations.
        stopping: The rule.
        start: Step at which the stage began.
    """
    reference, since = None, start
    for step, perplexity in zip(evaluations.steps, evaluations.values, strict=True):
        if step < start or (step == start and start > 0):
            continue
        if perplexity is not None and (reference is None or perplexity < reference - stopping.min_delta):
            reference, since = perplexity, step
        if reference is not None and step - since >= stopping.patience_steps:
            return step
    return None
