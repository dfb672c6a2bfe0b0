"""What a run and each of its stages work with: models, rows, the differentiable step, the optimizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from asnn_goose.config import Recipe
from asnn_goose.data.batches import BatchPlan
from asnn_goose.data.feed import Batch
from asnn_goose.errors import ConfigError
from asnn_goose.evaluation.perplexity import EvaluationWindows
from asnn_goose.models.anatomy import TeacherBlock
from asnn_goose.models.block import recomputed, run_block
from asnn_goose.models.compiling import CompiledForm, compile_or_fall_back
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.sublayers import residual_stream, sublayer_records
from asnn_goose.models.teacher import Teacher
from asnn_goose.objectives.dynamics import SwitchState
from asnn_goose.objectives.features import STATE_ERRORS, StateError
from asnn_goose.objectives.temperature import GivenTemperature, TemperatureModule
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.align import AlignmentStep, SublayerRunners, run_feed_forward, run_mixer
from asnn_goose.training.checkpoint import RunState
from asnn_goose.training.feature_terms import FeatureTerms, build_features, show_spikes
from asnn_goose.training.gradient_conflict import gradient_conflict
from asnn_goose.training.gradual import GradualChanges
from asnn_goose.training.hidden_cache import HiddenCache
from asnn_goose.training.optimizer import build_optimizer
from asnn_goose.training.ramp import Hardness
from asnn_goose.training.sharding import ShardedStudent
from asnn_goose.training.spike_terms import watch_activity
from asnn_goose.training.stages import StagePlan, copied_parameters, trained_parameters
from asnn_goose.training.step import DistillationStep, TeacherView


@dataclass(frozen=True)
class RunMaterial:
    """What a run works on: models, evaluation text, beginnings of it to continue, and where it leaves its traces.

    `sharded` is the student's root, if processes share its weights; `features` are the terms on hidden states of the
    stages that have begun, by their index: what they learned goes on in the next.
    """

    teacher: Teacher
    student: GooseForCausalLM
    windows: EvaluationWindows
    beginnings: tuple[Tensor, ...]
    folder: RunDirectory
    teacher_perplexity: float
    sharded: ShardedStudent | None = None
    features: dict[int, FeatureTerms] = field(default_factory=dict)


@dataclass(frozen=True)
class StageWork:
    """What one stage works with.

    Attributes:
        plan: Its budget, rates and exit.
        batches: Its rows.
        module: The differentiable step, not yet wrapped: token ids and what `observe` gives, to loss sums.
        observe: What the step wants to see of the teacher on given token ids.
        optimizer: Over the weights that the stage trains.
        hardness: How far the student's sites have become spikes.
        cache: What keeps the teacher's last hidden states, if the recipe asks for it.
        features: The objective's terms on hidden states, if it has any.
        glance: As `observe`, uncompiled, for rows of a shape of their own; None where nothing is to be probed.
        changes: What else changes step by step.
    """

    plan: StagePlan
    batches: BatchPlan
    module: nn.Module
    observe: Callable[[Tensor], Any]
    optimizer: AdamW
    hardness: Hardness
    cache: HiddenCache | None = None
    features: FeatureTerms | None = None
    glance: Callable[[Tensor], TeacherView] | None = None
    changes: GradualChanges | None = None

    def reach(self, state: RunState, lost: Tensor | None = None) -> None:
        """Set what holds where the run stands: spikes' hardness, weights, temperature; waits for nothing.

        `lost` are steps since the last log that a device alone knows to have been skipped.
        """
        done = state.step - state.stage_start
        self.hardness.reach(done)
        if self.features is not None:
            self.features.reach(done, state.dynamics_off)
        if isinstance(self.module, DistillationStep):
            self.module.reach(done, lost)
        if self.changes is not None:
            self.changes.reach(done)

    @property
    def complete(self) -> bool:
        """Whether the student is what it is to be in the end: every site spikes, at its last threshold."""
        return self.hardness.complete and (self.changes is None or self.changes.complete)

    def judge(self, state: RunState, perplexity: float, say: Callable[[str], None]) -> RunState:
        """The state after an evaluation, which may turn feature dynamics off, saying so."""
        if self.features is None or self.features.switch is None:
            return state
        known = SwitchState(state.dynamics_baseline, state.dynamics_off)
        baseline, off = self.features.switch.judge(known, state.step - state.stage_start, perplexity)
        if off and not known.off:
            say(f"perplexity {perplexity:,.2f} after {baseline:,.2f}: feature dynamics are off for the rest of the run")
        return replace(state, dynamics_baseline=baseline, dynamics_off=off)

    def conflict(self, accelerator: Accelerator, ids: Tensor) -> dict[str, float]:
        """`gradient_conflict` on a probe's rows, where hidden states are aligned and the student is whole."""
        module, features = self.module, self.features
        aligned = features is not None and features.alignment is not None
        if features is None or not aligned or self.glance is None or not isinstance(module, DistillationStep):
            return {}
        ids = ids.to(accelerator.device)
        seen = self.glance(ids)
        with accelerator.autocast():
            found = gradient_conflict(
                module.student, features, seen.hidden, seen.stream, ids, module.temperature().value, module.chunk_tokens
            )
        return {} if found is None else {"gradient_conflict": float(found)}

    @property
    def temperature(self) -> TemperatureModule:
        """The temperature that the stage distills at; an alignment has none that learns."""
        return self.module.temperature if isinstance(self.module, DistillationStep) else GivenTemperature(1.0)

    def figures(self) -> dict[str, float]:
        """What changes from step to step and is no mean over tokens, as it is now; waits for the device."""
        found = self.module.figures() if isinstance(self.module, DistillationStep) else {}
        return {name: float(figure) for name, figure in found.items()}

    def learned_temperature(self) -> Tensor | None:
        """What the stage has learned of the temperature; None where it learns none."""
        return None if self.temperature.raw is None else self.temperature.figures()["temperature"].clone()

    def go_on_from(self, temperature: Tensor | None) -> None:
        """Take over what the stage before learned of the temperature, if both learn it."""
        if temperature is not None and not isinstance(self.temperature, GivenTemperature):
            self.temperature.go_on_from(temperature)

    def take_slope(self, scaler: torch.amp.GradScaler | None) -> dict[str, Tensor]:
        """The derivative of a step's divergence by a temperature that learns, on this process; it is then forgotten."""
        slope = self.temperature.slope
        if slope is None:
            return {}
        taken = slope.double() / (1.0 if scaler is None else scaler.scale(torch.ones_like(slope)))
        slope.zero_()
        return {"temperature_gradient": taken}

    def see(self, batch: Batch) -> Any:
        """What the step sees of the teacher on a batch; what is kept is not computed again."""
        if self.cache is None:
            return self.observe(batch.ids)
        if self.cache.holds(batch.numbers):
            return TeacherView(self.cache.recall(batch.numbers))
        seen = self.observe(batch.ids)
        self.cache.keep(batch.numbers, seen.hidden)
        return seen


def build_work(
    plan: StagePlan, recipe: Recipe, material: RunMaterial, replaced: tuple[TeacherBlock, ...], batches: BatchPlan
) -> StageWork:
    """What a stage needs, with the weights that it trains set free and all others held.

    Args:
        plan: The stage.
        recipe: The run.
        material: Models and the rest of the run.
        replaced: The teacher's blocks that the student's stand for, in order; empty where it has none.
        batches: The stage's rows.

    Raises:
        ConfigError: The teacher's hidden states are to be kept and cannot be.
    """
    student, teacher = material.student, material.teacher
    copied = copied_parameters(student, recipe)
    trained = trained_parameters(student, plan, copied)
    for parameter in student.parameters():
        parameter.requires_grad_(parameter in trained)
    watch_activity(student, plan.objective if plan.kind == "distill" else None)
    module: nn.Module
    observe: Callable[[Tensor], Any]
    compiled, features, glance, temperature = recipe.training.compile, None, None, None
    if plan.kind == "align":
        module = AlignmentStep(student, compiled_runners() if compiled else SublayerRunners(), plan.inputs)

        def observe(ids: Tensor) -> Any:
            """The teacher's sublayers, what they were given and gave."""
            return sublayer_records(teacher.model, replaced, ids, plan.sublayers)
    else:
        runner = compile_or_fall_back(run_block, "student", dynamic=False) if compiled else run_block
        student.model.block_runner = recomputed(runner) if recipe.training.activation_checkpointing else runner
        features = build_features(plan.objective, recipe, teacher, compiled_error(plan) if compiled else None)
        module = DistillationStep(student, teacher.head, plan.objective, features, plan.span)
        temperature = module.temperature.raw
        observe = partial(observed, teacher)
        if features is not None:
            features.continue_from(material.features.get(plan.index - 1))
            material.features[plan.index] = features
            observe = partial(observed_stream, teacher, features.states)
            if material.sharded is None:
                plain = replace(teacher, body=CompiledForm(teacher.body.plain, None, "teacher"))
                glance = partial(observed_stream, plain, features.states)
    show_spikes(student, features)
    optimizer = build_optimizer(module, recipe.training, plan, copied, temperature)
    hardness = Hardness(student, plan)
    cached = recipe.teacher.hidden_cache and plan.kind == "distill"
    cache = hidden_cache(teacher, batches) if cached else None
    changes = GradualChanges(recipe, plan, module, student)
    return StageWork(plan, batches, module, observe, optimizer, hardness, cache, features, glance, changes)


def compiled_error(plan: StagePlan) -> StateError | None:
    """A compiled form of what a stage's hidden alignment compares states by; None where it aligns none."""
    alignment = plan.objective.hidden_alignment
    if alignment is None:
        return None
    error: StateError = compile_or_fall_back(STATE_ERRORS[alignment.loss], "hidden states' error", dynamic=False)
    return error


def compiled_runners() -> SublayerRunners:
    """Compiled forms of what runs a sublayer alone."""
    return SublayerRunners(
        compile_or_fall_back(run_mixer, "mixer", dynamic=False),
        compile_or_fall_back(run_feed_forward, "feed-forward part", dynamic=False),
    )


def hidden_cache(teacher: Teacher, batches: BatchPlan) -> HiddenCache:
    """Room for the teacher's last hidden states of all rows.

    Raises:
        ConfigError: There is not enough memory, or there are several processes.
    """
    if batches.processes > 1:
        raise ConfigError(
            f"teacher.hidden_cache=true with {batches.processes} processes: in each epoch a process meets other rows, "
            "so what one keeps would serve another; set it to false, or train on one process"
        )
    weight = teacher.head.weight
    return HiddenCache(len(batches.rows), batches.rows.window, weight.shape[1], weight.dtype, weight.device)


def observed(teacher: Teacher, ids: Tensor) -> TeacherView:
    """What the teacher's head reads."""
    return TeacherView(teacher.hidden_states(ids))


def observed_stream(teacher: Teacher, states: Sequence[int], ids: Tensor) -> TeacherView:
    """What the teacher's head reads, and its residual stream at the given places, as backward passes may keep it."""
    with torch.no_grad():
        return TeacherView(*teacher.body.run(lambda body: residual_stream(body, states, ids)))
