"""The stages of a run: how they share its budget, and which weights each of them trains at which rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from torch import nn

from asnn_goose.config import Recipe
from asnn_goose.config_objective import Objective
from asnn_goose.config_student import GooseStudent
from asnn_goose.config_training import (
    AlignStage,
    DistillStage,
    SpikeRamp,
    Stage,
    StageExit,
    TrainingBySteps,
    TrainingOptions,
    shared_steps,
)
from asnn_goose.errors import ConfigError
from asnn_goose.models.calibration import output_norms
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.sublayers import Sublayers
from asnn_goose.objectives.schedules import Span
from asnn_goose.spikes.encoder import SpikeEncoder


@dataclass(frozen=True)
class RampPlan:
    """Sites that rise together, place by place, and the steps that all of them take."""

    places: tuple[tuple[str, ...], ...]
    steps: int


@dataclass(frozen=True)
class StagePlan:
    """One stage with everything settled.

    Attributes:
        index: Place among the run's stages.
        name: What metrics and results call it.
        kind: `align` or `distill`.
        steps: Optimizer steps of its budget.
        train: Which weights it trains.
        sublayers: Those that `align` aligns.
        batch_size: Rows a micro-batch holds on each process.
        window: Tokens a row holds.
        part_weights: Weights of a mixture's parts in place of its own, or None.
        accumulation: Micro-batches a step sums over.
        processes: Processes that train together.
        learning_rate: Peak for new weights.
        copied_learning_rate: Peak for weights taken over from the teacher.
        objective: What is minimized; unused by `align`.
        exit: What ends it early.
        ramp: Which sites become spikes, and how fast.
        dense: Sites that a later stage raises.
        inputs: Whose stream feeds what `align` aligns.
        span: What of the budget that its objective's schedules run over is the stage's.
        first_step: Steps of the run's budget before it.
        run_steps: Steps of the whole run's budget; None is the stage's own.
        warmup_steps: Steps of linear warm-up at its start; None is the recipe's.
        keeps_moments: Whether it takes over the optimizer's moments of the stage before.
        transition: Steps over which the objective before becomes its own.
        objective_before: What the stage before minimized, if it distilled.
    """

    index: int
    name: str
    kind: Literal["align", "distill"]
    steps: int
    train: Literal["all", "mixers", "sublayers", "new"]
    sublayers: Sublayers
    batch_size: int
    window: int
    part_weights: tuple[float, ...] | None
    accumulation: int
    processes: int
    learning_rate: float
    copied_learning_rate: float
    objective: Objective
    exit: StageExit | None
    ramp: RampPlan | None = None
    dense: frozenset[str] = frozenset()
    inputs: Literal["teacher", "student"] = "teacher"
    span: Span | None = None
    first_step: int = 0
    run_steps: int | None = None
    warmup_steps: int | None = None
    keeps_moments: bool = False
    transition: int = 0
    objective_before: Objective | None = None

    @property
    def rows_per_step(self) -> int:
        """Rows one optimizer step sums over, on all processes together."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def tokens_per_step(self) -> int:
        """Tokens of these rows."""
        return self.rows_per_step * self.window

    @property
    def tokens(self) -> int:
        """Tokens of the stage's budget."""
        return self.steps * self.tokens_per_step


def plan_stages(recipe: Recipe, processes: int) -> tuple[StagePlan, ...]:
    """The run's stages in order; a recipe without stages has one that distills into all weights.

    Raises:
        ConfigError: A ramp is longer than its stage.
    """
    stages: tuple[Stage, ...] = recipe.stages or (DistillStage(share=1.0),)
    shares = [stage.share for stage in stages]
    alone = [_settled(index, stage, shares, recipe, processes) for index, stage in enumerate(stages)]
    ends = list(accumulate(plan.steps for plan in alone))
    before = [None, *(plan.objective if plan.kind == "distill" else None for plan in alone)]
    plans = [
        replace(plan, first_step=end - plan.steps, run_steps=ends[-1], objective_before=objective)
        for plan, end, objective in zip(alone, ends, before, strict=False)
    ]
    return with_spans(plans, [isinstance(stage, DistillStage) and stage.objective is None for stage in stages])


def with_spans(plans: Sequence[StagePlan], shares_schedules: Sequence[bool]) -> tuple[StagePlan, ...]:
    """The stages with what their schedules run over: one budget for all that share the recipe's, else their own."""
    before, spans = 0, []
    whole = sum(plan.steps for plan, shares in zip(plans, shares_schedules, strict=True) if shares)
    for plan, shares in zip(plans, shares_schedules, strict=True):
        spans.append(Span(before, plan.steps, whole) if shares else Span(0, plan.steps, plan.steps))
        before += plan.steps if shares else 0
    return tuple(replace(plan, span=span) for plan, span in zip(plans, spans, strict=True))


def _settled(index: int, stage: Stage, shares: list[float], recipe: Recipe, processes: int) -> StagePlan:
    training = recipe.training
    batch_size = stage.batch_size or training.rows
    window = stage.window or training.window
    rate = stage.learning_rate or training.learning_rate
    rows = batch_size * training.accumulation * processes
    objective = recipe.objective if isinstance(stage, AlignStage) else stage.settled_objective(recipe.objective)
    steps = stage_steps(training, shares, index, rows * window)
    later = [other.ramp for other in recipe.stages[index + 1 :] if other.ramp is not None]
    return StagePlan(
        index=index,
        name=stage.name,
        kind=stage.kind,
        steps=steps,
        train=stage.train,
        sublayers=stage.sublayers if isinstance(stage, AlignStage) else "mixers",
        inputs=stage.inputs if isinstance(stage, AlignStage) else "teacher",
        batch_size=batch_size,
        window=window,
        part_weights=stage.part_weights,
        accumulation=training.accumulation,
        processes=processes,
        learning_rate=rate,
        copied_learning_rate=stage.copied_learning_rate or training.copied_learning_rate or rate,
        objective=objective,
        exit=stage.exit,
        ramp=None if stage.ramp is None else planned_ramp(stage.ramp, stage.name, steps, rows * window),
        dense=frozenset(site for ramp in later for place in ramp.places for site in place),
        warmup_steps=stage.warmup_steps,
        keeps_moments=stage.moments == "kept",
        transition=0 if isinstance(stage, AlignStage) else stage.transition,
    )


def planned_ramp(ramp: SpikeRamp, stage: str, steps: int, tokens_per_step: int) -> RampPlan:
    """A ramp in steps.

    Raises:
        ConfigError: It is longer than its stage.
    """
    rising = steps if ramp.tokens is None else math.ceil(ramp.tokens / tokens_per_step)
    if rising > steps:
        raise ConfigError(
            f"the ramp of stage {stage} takes {ramp.tokens:,} tokens, which is longer than the stage with "
            f"{steps * tokens_per_step:,}: give ramp.tokens={steps * tokens_per_step} or fewer, or raise the budget"
        )
    return RampPlan(ramp.places, rising)


def stage_steps(training: TrainingOptions, shares: Sequence[float], index: int, tokens_per_step: int) -> int:
    """Optimizer steps of one of the shares of the budget, at least one; a budget in tokens is rounded up."""
    if isinstance(training, TrainingBySteps):
        return shared_steps(shares, training.steps)[index]
    tokens: int = training.tokens  # type: ignore[attr-defined]
    share = shares[index] / sum(shares)
    # Rounded before it is rounded up: a third of three million is a million.
    return max(1, math.ceil(round(share * tokens / tokens_per_step, 6)))


def ends_early(exit: StageExit | None, before: float | None, now: float, teacher: float) -> bool:
    """Whether a stage has reached what it was for: perplexity now, at the evaluation before, and the teacher's."""
    if exit is None:
        return False
    if exit.below_ratio is not None and now <= exit.below_ratio * teacher:
        return True
    return exit.least_gain is not None and before is not None and now > (1.0 - exit.least_gain) * before


def copied_parameters(student: GooseForCausalLM, recipe: Recipe) -> set[nn.Parameter]:
    """The weights that came from the teacher: of a mixer what attention has, of encoders or a random student none."""
    if recipe.student.initialization == "random":
        return set()
    fresh = new_mixer_parameters(student, isinstance(recipe.student, GooseStudent)) | encoder_parameters(student)
    fresh |= {norm.weight for norm in output_norms(student)}
    return {parameter for parameter in student.parameters() if parameter not in fresh}


def encoder_parameters(student: GooseForCausalLM) -> set[nn.Parameter]:
    """Amplitudes and threshold factors of all spike encoders."""
    encoders = (module for module in student.modules() if isinstance(module, SpikeEncoder))
    return {parameter for encoder in encoders for parameter in encoder.parameters()}


def new_mixer_parameters(student: GooseForCausalLM, attention_is_copied: bool) -> set[nn.Parameter]:
    """The weights of the mixers that no teacher can give."""
    return {
        parameter
        for mixer in student.model.mixers()
        for name, parameter in mixer.named_parameters()
        if not (attention_is_copied and name.split(".")[0] in mixer.COPIED)
    }


def trained_parameters(student: GooseForCausalLM, plan: StagePlan, copied: set[nn.Parameter]) -> set[nn.Parameter]:
    """The weights that a stage trains; threshold factors that do not learn are none of them.

    Neither are those that the recorded estimator gives no gradient: several processes would wait for one.
    """
    encoders = [module for module in student.modules() if isinstance(module, SpikeEncoder)]
    held = {
        part.alpha
        for part in encoders
        if isinstance(part.alpha, nn.Parameter) and not (part.learns_alpha and part.surrogate.kind != "recorded_ste")
    }
    if plan.train == "all":
        return set(student.parameters()) - held
    # A stage that distills into less than all weights trains its mixers.
    names = {"mixers": ("mixer",), "feed_forward": ("feed_forward",), "all": ("mixer", "feed_forward")}[plan.sublayers]
    parts = [block.get_submodule(name) for block in student.model.layers for name in names]
    chosen = {parameter for part in parts for parameter in part.parameters()}
    return chosen - held - (copied if plan.train == "new" else set())
