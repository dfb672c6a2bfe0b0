"""What a run and each of its stages work with: models, rows, the differentiable step, the optimizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from asnn_goose.config import Recipe
from asnn_goose.config_student import GooseStudent
from asnn_goose.data.batches import BatchPlan
from asnn_goose.data.feed import Batch
from asnn_goose.errors import ConfigError
from asnn_goose.evaluation.perplexity import EvaluationWindows
from asnn_goose.models.anatomy import TeacherBlock, body_blocks
from asnn_goose.models.block import recomputed, run_block
from asnn_goose.models.compiling import compile_or_fall_back
from asnn_goose.models.from_teacher import kept_layers
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.sublayers import residual_stream, sublayer_records
from asnn_goose.models.teacher import Teacher
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.align import AlignmentStep, SublayerRunners, run_feed_forward, run_mixer
from asnn_goose.training.gradual import GradualChanges
from asnn_goose.training.hidden_cache import HiddenCache
from asnn_goose.training.optimizer import build_optimizer
from asnn_goose.training.ramp import Hardness
from asnn_goose.training.sharding import ShardedStudent
from asnn_goose.training.spike_terms import watch_activity
from asnn_goose.training.stages import StagePlan, copied_parameters, trained_parameters
from asnn_goose.training.step import DistillationStep, TeacherView, channel_error


@dataclass(frozen=True)
class RunMaterial:
    """What a run works on: models, evaluation text, beginnings of it to continue, and where it leaves its traces.

    `sharded` is the student's root, if processes share its weights.
    """

    teacher: Teacher
    student: GooseForCausalLM
    windows: EvaluationWindows
    beginnings: tuple[Tensor, ...]
    folder: RunDirectory
    teacher_perplexity: float
    sharded: ShardedStudent | None = None


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
        changes: What else changes step by step.
    """

    plan: StagePlan
    batches: BatchPlan
    module: nn.Module
    observe: Callable[[Tensor], Any]
    optimizer: AdamW
    hardness: Hardness
    cache: HiddenCache | None = None
    changes: GradualChanges | None = None

    def reach(self, done: int) -> None:
        """Set what holds after `done` steps of the stage; nothing waits for the device."""
        self.hardness.reach(done)
        if self.changes is not None:
            self.changes.reach(done)

    @property
    def complete(self) -> bool:
        """Whether the student is what it is to be in the end: every site spikes, at its last threshold."""
        return self.hardness.complete and (self.changes is None or self.changes.complete)

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
    compiled = recipe.training.compile
    if plan.kind == "align":
        module = AlignmentStep(student, compiled_runners() if compiled else SublayerRunners())

        def observe(ids: Tensor) -> Any:
            """The teacher's sublayers, what they were given and gave."""
            return sublayer_records(teacher.model, replaced, ids, plan.sublayers)
    else:
        runner = compile_or_fall_back(run_block, "student", dynamic=False) if compiled else run_block
        student.model.block_runner = recomputed(runner) if recipe.training.activation_checkpointing else runner
        error = compile_or_fall_back(channel_error, "hidden states' error", dynamic=False) if compiled else None
        module = DistillationStep(student, teacher.head, plan.objective, error)
        follows = plan.objective.hidden_alignment is not None
        observe = (
            partial(observed_stream, teacher, stretches(recipe, teacher)) if follows else partial(observed, teacher)
        )

    optimizer = build_optimizer(module, recipe.training, plan, copied)
    hardness = Hardness(student, plan)
    cached = recipe.teacher.hidden_cache and plan.kind == "distill"
    cache = hidden_cache(teacher, batches) if cached else None
    changes = GradualChanges(recipe, plan, module, student)
    return StageWork(plan, batches, module, observe, optimizer, hardness, cache, changes)


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


def observed_stream(teacher: Teacher, kept: Sequence[int], ids: Tensor) -> TeacherView:
    """What the teacher's head reads, and its residual stream where the stretches of its blocks end."""
    with torch.inference_mode():
        return TeacherView(*teacher.body.run(lambda body: residual_stream(body, kept, ids)))


def stretches(recipe: Recipe, teacher: Teacher) -> list[int]:
    """The teacher's blocks at which the stretches begin that the student's blocks stand for."""
    # Recipes say so already.
    assert isinstance(recipe.student, GooseStudent)
    blocks, _ = body_blocks(teacher.model.base_model)
    return kept_layers(recipe.student.keep_layers, len(blocks))
