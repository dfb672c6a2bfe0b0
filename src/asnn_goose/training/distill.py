"""A distillation run from recipe to results: the page to read first.

text -> documents -> packed token rows -> teacher and student -> objective -> update -> metrics -> checkpoint ->
evaluation -> results. Each step below is one call; the loop itself is in `loop.py`.
"""

from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from rich.console import Console

from asnn_goose.config import Recipe
from asnn_goose.config_training import Precision
from asnn_goose.errors import CheckpointError, ConfigError
from asnn_goose.models.build import check_windows
from asnn_goose.models.teacher import load_teacher
from asnn_goose.presets import recipe_hash
from asnn_goose.results import Results
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.batch_probe import resolve_batch_size
from asnn_goose.training.checkpoint import Checkpoint, RunState, load_checkpoint
from asnn_goose.training.curriculum import prepare_course
from asnn_goose.training.distributed import (
    check_launch,
    from_main,
    is_main_process,
    join_processes,
    main_console,
    process_count,
    spread_over,
)
from asnn_goose.training.feature_terms import check_features
from asnn_goose.training.finish import finish_run
from asnn_goose.training.guards import stop_requests
from asnn_goose.training.loop import StopReason, TrainingLoop
from asnn_goose.training.moments import kept_moments, take_moments
from asnn_goose.training.precision import resolve_precision, resolve_teacher_dtype
from asnn_goose.training.prepare import prepare_material, prepare_student, replaced_blocks, stage_batches
from asnn_goose.training.progress import ProgressLine
from asnn_goose.training.rows import PreparedText, prepare_text
from asnn_goose.training.sharding import shard_student
from asnn_goose.training.stages import plan_stages
from asnn_goose.training.stopping import ends_run
from asnn_goose.training.work import RunMaterial, StageWork, build_work

REPLICATION = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
"""Gradients lie in the buckets that are sent, not beside them."""


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended: with results, or interrupted with its state saved."""

    folder: RunDirectory
    results: Results | None


def distill(recipe: Recipe, folder: RunDirectory, console: Console) -> RunOutcome:
    """Run a recipe in a run folder, from where the folder's checkpoints stand.

    Of several processes, which share the folder, the main one writes and speaks.

    Raises:
        GooseError: Whatever in the user's input, machine or checkpoint stops the run, in one line.
    """
    join_processes()
    console = main_console(console)
    # Nothing in a run draws from the global generator unseeded; a resumed run restores its state.
    torch.manual_seed(recipe.training.seed)
    found = common_checkpoint(folder, console)
    state = from_main(fresh_state(recipe)) if found is None else resumed_state(found, recipe, console)
    if is_main_process():
        folder.cut_metrics(-1 if found is None else state.step)
    accelerator = build_accelerator(recipe, state.precision, folder)
    console.print(f"reading text and teacher {recipe.teacher.name} ({state.precision}, {accelerator.device})")
    teacher = load_teacher(
        recipe.teacher.name,
        resolve_teacher_dtype(recipe.teacher.dtype, state.precision),
        accelerator.device,
        recipe.teacher.sha256,
        recipe.teacher.compile,
    )
    check_windows(teacher, recipe.windows)
    check_features(recipe, teacher)
    # The cache may be shared by all machines, or each have its own.
    with accelerator.main_process_first(), accelerator.local_main_process_first():
        text = prepare_text(recipe.data, recipe.training.seed, teacher, console)
    material = prepare_material(recipe, text, teacher, accelerator, folder, console)
    recipe = resolve_batch_size(recipe, material, text, accelerator, console)
    if found is None:
        prepare_student(recipe, material, text, accelerator, console)
    plans = plan_stages(recipe, state.processes)
    resumes = found is not None
    text = replace(text, course=prepare_course(recipe, plans, material, text, accelerator, resumes, console))
    if recipe.training.sharding == "fsdp2":
        material = replace(material, sharded=shard_student(material.student, accelerator))
    loop, reason = run_stages(recipe, material, text, accelerator, state, found, console)
    results = finish_run(recipe, loop, console) if reason != "interrupted" and is_main_process() else None
    results = from_main(results)
    # DDP holds the group of processes: if that outlived its end here, DDP's end would be its own, under Python's lock,
    # for which a thread of gloo's may be waiting.
    del loop
    accelerator.free_memory()
    accelerator.end_training()
    return RunOutcome(folder, results)


def run_stages(
    recipe: Recipe,
    material: RunMaterial,
    text: PreparedText,
    accelerator: Accelerator,
    state: RunState,
    found: Checkpoint | None,
    console: Console,
) -> tuple[TrainingLoop, StopReason]:
    """Train through the stages that are left; returns the last one's loop and why it ended."""
    planned = plan_stages(recipe, state.processes)
    plans = tuple(spread_over(plan, accelerator.num_processes) for plan in planned)
    replaced = replaced_blocks(recipe, material.teacher)
    whole = sum(plan.steps for plan in plans)
    reason: StopReason = "budget"
    with stop_requests() as stop_asked, ProgressLine(console, whole, state.step) as progress:
        work: StageWork | None = None
        loop: TrainingLoop | None = None
        for plan in plans[min(state.stage, len(plans) - 1) :]:
            moments = kept_moments(None if loop is None else loop.bare_optimizer, plan)
            # What the stage before recorded, kept and accumulated makes room, and nothing of it stays with accelerate.
            learned = None if work is None else work.learned_temperature()
            work = loop = None
            accelerator.free_memory()
            batches = stage_batches(recipe, plan, text, accelerator)
            work = build_work(plan, recipe, material, replaced, batches)
            work.go_on_from(learned)
            loop = TrainingLoop(accelerator, work, material, recipe.training, state)
            if found is not None:
                loop.restore(found.tensors)
                found = None
            elif plan.index > 0:
                take_moments(loop.bare_optimizer, moments)
                loop.save("last")
            if state.stage < len(plans):
                reason = loop.run(progress, stop_asked)
                if reason == "interrupted":
                    break
                loop.end_stage(reason, progress)
                if ends_run(reason, recipe.training):
                    loop.state = replace(loop.state, stage=len(plans))
                    break
            state = loop.state
        if loop is None:
            raise ValueError("a run has at least one stage")
        if reason != "interrupted":
            loop.save("last")
    return loop, reason


def common_checkpoint(folder: RunDirectory, console: Console) -> Checkpoint | None:
    """The checkpoint that the main process found newest, read by every process.

    Raises:
        CheckpointError: As `newest_checkpoint`.
    """
    found = newest_checkpoint(folder, console) if is_main_process() else None
    path = from_main(None if found is None else found.path)
    return found if found is not None or path is None else load_checkpoint(path)


def newest_checkpoint(folder: RunDirectory, console: Console) -> Checkpoint | None:
    """The last checkpoint, or the one before it if the last is damaged, saying so; None in a fresh folder.

    Raises:
        CheckpointError: There are checkpoints and none can be read.
    """
    problems: list[str] = []
    for name in ("last", "previous"):
        path = folder.checkpoints / name
        if not path.exists():
            continue
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            console.print(f"{problems[0]}; going on from the one before it, step {checkpoint.state.step}")
        return checkpoint
    if problems:
        raise CheckpointError(f"{problems[-1]}; no checkpoint is left to resume from, start again with another --out")
    return None


def fresh_state(recipe: Recipe) -> RunState:
    """The state of a run that has not begun, with `auto` precision resolved by timing."""
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    return RunState(
        step=0,
        attempts=0,
        stage=0,
        stage_start=0,
        rows_seen=0,
        tokens=0,
        skipped=0,
        roll_backs=0,
        best_perplexity=None,
        best_step=None,
        stopping_perplexity=None,
        stopping_step=None,
        seconds=0.0,
        precision=resolve_precision(recipe.training.precision, device),
        threads=torch.get_num_threads(),
        recipe_hash=recipe_hash(recipe),
        processes=process_count(),
    )


def resumed_state(found: Checkpoint, recipe: Recipe, console: Console) -> RunState:
    """The state of a checkpoint, its thread count restored: on a CPU the order of sums depends on it.

    Raises:
        CheckpointError: The checkpoint belongs to another recipe.
    """
    state = found.state
    if state.recipe_hash != recipe_hash(recipe):
        raise CheckpointError(f"{found.path} belongs to another recipe; resume with the run's own config.yaml")
    threads = torch.get_num_threads()
    if threads != state.threads:
        console.print(
            f"this run began with {state.threads} CPU threads, this process has {threads}: "
            f"using {state.threads} again, so that the result stays the same to the bit"
        )
        torch.set_num_threads(state.threads)
    console.print(f"resuming at step {state.step} from {found.path}")
    return state


def build_accelerator(recipe: Recipe, precision: Precision, folder: RunDirectory) -> Accelerator:
    """Device, precision, processes and trackers; gradient accumulation stays with the loop.

    Raises:
        ConfigError: A tracker whose package is not installed, or a launch that `check_launch` refuses.
    """
    trackers = list(recipe.training.trackers)
    mixed = {"fp32": "no"}.get(precision, precision)
    try:
        accelerator = Accelerator(
            mixed_precision=mixed,
            log_with=trackers or None,
            project_dir=str(folder.path),
            kwargs_handlers=[REPLICATION],
        )
        check_launch(accelerator)
        if trackers:
            accelerator.init_trackers("asnn-goose")
    except (ImportError, ValueError) as error:
        way = "install 'asnn-goose[trackers]' or drop it"
        raise ConfigError(f"training.trackers={trackers}: {error}; {way}") from error
    return accelerator
