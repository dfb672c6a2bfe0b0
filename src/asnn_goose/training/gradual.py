"""What changes from step to step without learning: an objective's weights at a border, a temperature, a threshold."""

from bisect import bisect_right
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from asnn_goose.config import Recipe
from asnn_goose.config_curriculum import StepPacing
from asnn_goose.config_objective import Objective
from asnn_goose.config_temperature import FixedTemperature
from asnn_goose.config_threshold import ProgressiveThreshold
from asnn_goose.data.curriculum import part_ends
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.objectives.alignment import AlignmentTerm
from asnn_goose.objectives.temperature import GivenTemperature
from asnn_goose.spikes.encoder import SpikeEncoder
from asnn_goose.training.feature_terms import FeatureTerms
from asnn_goose.training.stages import StagePlan
from asnn_goose.training.step import DistillationStep

Course = Callable[[int], None]
"""Sets what holds after so many steps of a stage."""


class GradualChanges:
    """Everything that a stage changes step by step, set from the number of steps done, so that a resumed run agrees.

    Args:
        recipe: The run.
        plan: The stage.
        module: Its differentiable step.
        student: The model that spikes.
    """

    def __init__(self, recipe: Recipe, plan: StagePlan, module: nn.Module, student: GooseForCausalLM) -> None:
        self.plan, self.alpha = plan, recipe.spikes.threshold
        self._scheduled = scheduled_alphas(student)
        self._share: float | None = None
        self._courses: list[Course] = []
        step = module if isinstance(module, DistillationStep) else None
        if step is not None and plan.transition and plan.objective_before is not None:
            self._courses.append(transition(step, plan.objective_before, plan.objective, plan.transition))
        pacing = None if recipe.curriculum is None else recipe.curriculum.pacing
        if step is not None and isinstance(pacing, StepPacing) and pacing.temperatures is not None:
            self._courses.append(temperatures(step, pacing, plan))

    def reach(self, done: int) -> None:
        """Set what holds after `done` steps of the stage; nothing waits for the device."""
        for course in self._courses:
            course(done)
        if isinstance(self.alpha, ProgressiveThreshold):
            share = self._risen(self.alpha, done)
            if share != self._share:
                now = (1.0 - share) * self.alpha.alpha + share * self.alpha.final_alpha
                with torch.no_grad():
                    for alpha in self._scheduled:
                        alpha.fill_(now)
                self._share = share

    @property
    def complete(self) -> bool:
        """Whether thresholds are where they end."""
        return not isinstance(self.alpha, ProgressiveThreshold) or self._share == 1.0

    def _risen(self, alpha: ProgressiveThreshold, done: int) -> float:
        steps = alpha.until * (self.plan.run_steps or self.plan.steps)
        # Rounded, so that the end is the end to the bit.
        return min(1.0, round((self.plan.first_step + done) / steps, 9))


def scheduled_alphas(student: GooseForCausalLM) -> list[nn.Parameter]:
    """The threshold factors that training sets; they stay where they are on their device."""
    encoders = (module for module in student.modules() if isinstance(module, SpikeEncoder))
    return [
        encoder.alpha for encoder in encoders if encoder.threshold.scheduled and isinstance(encoder.alpha, nn.Parameter)
    ]


def transition(step: DistillationStep, before: Objective, after: Objective, steps: int) -> Course:
    """Moves the numbers of a distillation step evenly from one objective's to another's."""
    old, new = objective_numbers(before), objective_numbers(after)

    def reach(done: int) -> None:
        """Set the numbers; what only one of the objectives has rises from 0, or is gone."""
        share = min(1.0, done / steps)
        for name, number in new.items():
            start = old.get(name, number if name == "temperature" else 0.0)
            set_number(step, name, (1.0 - share) * start + share * number)

    return reach


def objective_numbers(objective: Objective) -> dict[str, float]:
    """What an objective multiplies its terms with and no schedule moves, and its temperature if that is fixed."""
    stated = {"kl_weight": objective.kl_weight, "cross_entropy_weight": objective.cross_entropy_weight}
    if isinstance(objective.temperature, FixedTemperature):
        stated["temperature"] = objective.temperature.value
    if objective.hidden_alignment is not None:
        stated["hidden_alignment_weight"] = objective.hidden_alignment.weight
    return {name: number for name, number in stated.items() if isinstance(number, int | float)}


def set_number(step: DistillationStep, name: str, number: float) -> None:
    """Put a number where a distillation step reads it."""
    match name:
        case "temperature":
            cast(GivenTemperature, step.temperature).value = number
        case "hidden_alignment_weight":
            cast(AlignmentTerm, cast(FeatureTerms, step.features).alignment).weight = number
        case _:
            setattr(step, name, number)


def temperatures(step: DistillationStep, pacing: StepPacing, plan: StagePlan) -> Course:
    """Gives each part of the run its temperature."""
    values = pacing.temperatures or ()
    ends = part_ends(pacing, plan.run_steps or plan.steps)

    def reach(done: int) -> None:
        """Set the temperature of the part that the next step is of."""
        part = min(bisect_right(ends, plan.first_step + done), len(values) - 1)
        set_number(step, "temperature", values[part])

    return reach
