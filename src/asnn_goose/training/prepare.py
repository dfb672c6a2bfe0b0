"""What stands ready before a run trains: evaluation text, the student, its controls, its calibration, its rows."""

from contextlib import nullcontext

from accelerate import Accelerator
from rich.console import Console

from asnn_goose.config import Recipe
from asnn_goose.config_student import GooseStudent
from asnn_goose.data.batches import BatchPlan
from asnn_goose.evaluation.perplexity import EvaluationWindows, evaluation_windows, measure_perplexity
from asnn_goose.evaluation.student import site_encoders, student_perplexity
from asnn_goose.models.anatomy import TeacherBlock, teacher_anatomy
from asnn_goose.models.build import build_student
from asnn_goose.models.calibration import (
    ENCODER_TOKENS,
    calibrate_encoders,
    calibrate_from_attention,
    calibrate_outputs,
    calibrated_encoders,
    dense_encoders,
    fit_output_norms,
    limit_events,
    without_output_norms,
)
from asnn_goose.models.from_teacher import kept_layers
from asnn_goose.models.migration import migrate_outliers
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.sublayers import BlockRecord, sublayer_records
from asnn_goose.models.teacher import Teacher
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.distributed import from_main, is_main_process
from asnn_goose.training.rows import PreparedText
from asnn_goose.training.samples import held_out_beginnings
from asnn_goose.training.spike_terms import wanted_events
from asnn_goose.training.stages import StagePlan
from asnn_goose.training.work import RunMaterial


def prepare_material(
    recipe: Recipe,
    text: PreparedText,
    teacher: Teacher,
    accelerator: Accelerator,
    folder: RunDirectory,
    console: Console,
) -> RunMaterial:
    """Evaluation windows, the teacher's perplexity on them, and the student with what it takes over."""
    windows = evaluation_windows(text.separator.join(text.held_out), teacher.tokenizer, recipe.evaluation)
    student = build_student(recipe.student, recipe.spikes, teacher, recipe.training.seed)
    student.to(accelerator.device).train()
    beginnings = held_out_beginnings(text.held_out, windows.rows, teacher.tokenizer, recipe.samples)
    perplexity = measured_teacher_perplexity(teacher, windows, folder, console)
    return RunMaterial(teacher, student, windows, beginnings, folder, perplexity)


def prepare_student(
    recipe: Recipe, material: RunMaterial, text: PreparedText, accelerator: Accelerator, console: Console
) -> None:
    """Measure the controls, if the recipe asks for them, and fit what the copy left free to the teacher's attention."""
    options = recipe.student
    if recipe.controls:
        drawn = options.model_copy(update={"initialization": "random"})
        control = build_student(drawn, recipe.spikes, material.teacher, recipe.training.seed)
        measure_control("random_weights", control.to(accelerator.device), recipe, material, console)
        if options.initialization == "teacher":
            measure_control("untrained_conversion", material.student, recipe, material, console)
    calibrate_student(recipe, material, text, accelerator, console)


def calibrate_student(
    recipe: Recipe, material: RunMaterial, text: PreparedText, accelerator: Accelerator, console: Console
) -> None:
    """Fit mixers to the teacher's attention and thresholds to the activations, where the recipe asks for it."""
    options, student, window = recipe.student, material.student, recipe.training.window
    converted = isinstance(options, GooseStudent) and options.initialization == "teacher"
    tokens = options.calibration_tokens if isinstance(options, GooseStudent) and converted else 0
    searched = bool(calibrated_encoders(student))
    if not tokens and not searched:
        return
    rows = -(-(tokens or ENCODER_TOKENS) // window)
    batch = BatchPlan(text.rows(window), rows, recipe.training.seed).batch(0).to(accelerator.device)
    records: tuple[BlockRecord, ...] = ()
    if tokens:
        status = console.status("fitting timescales and gains to the teacher's attention")
        dense = dense_encoders(student) if searched else nullcontext()
        with status, dense, without_output_norms(student):
            blocks = replaced_blocks(recipe, material.teacher)
            records = sublayer_records(material.teacher.model, blocks, batch, "mixers")
            calibrate_from_attention(student, records)
    fit_output_norms(student, batch)
    if searched:
        with console.status("fitting thresholds to the student's activations"):
            calibrate_encoders(student, batch)
            if recipe.spikes.migrate:
                migrate_outliers(student, batch)
            if recipe.objective.activity is not None:
                limits = wanted_events(student, recipe.objective.activity)
                named = {part: limits.get(name.split(".")[1]) for name, part in site_encoders(student).items()}
                limit_events(student, batch, {part: most for part, most in named.items() if most is not None})
            if tokens:
                # What is read behind the thresholds is known only now; rates and gains stay, channels may have moved.
                calibrate_outputs(student, records)


def measure_control(
    name: str, student: GooseForCausalLM, recipe: Recipe, material: RunMaterial, console: Console
) -> None:
    """Measure the perplexity of something that was not trained, on the run's windows, and keep it in the metrics."""
    with console.status(f"measuring the control {name}"):
        found = student_perplexity(student, material.windows, recipe.training.rows)
    if is_main_process():
        material.folder.append_metrics(step=0, control=name, control_perplexity=found.perplexity)
    ratio = found.perplexity / material.teacher_perplexity
    console.print(
        f"control {name.replace('_', ' ')}: perplexity {found.perplexity:,.2f}, {ratio:,.3g}x the teacher's",
        highlight=False,
    )


def stage_batches(recipe: Recipe, plan: StagePlan, text: PreparedText, accelerator: Accelerator) -> BatchPlan:
    """The rows of one stage, in an order of its own or, as far as the run has a curriculum, in its."""
    rows = text.rows(plan.window, plan.part_weights)
    seed = recipe.training.seed + plan.index
    course = None if text.course is None else text.course.of_stage(plan.first_step, plan.rows_per_step)
    return BatchPlan(rows, plan.batch_size, seed, accelerator.num_processes, accelerator.process_index, course)


def replaced_blocks(recipe: Recipe, teacher: Teacher) -> tuple[TeacherBlock, ...]:
    """The teacher's blocks that the student's stand for; none where its mixers are no attention's."""
    if not isinstance(recipe.student, GooseStudent):
        return ()
    blocks = teacher_anatomy(teacher.model, teacher.name).blocks
    return tuple(blocks[index] for index in kept_layers(recipe.student.keep_layers, len(blocks)))


def measured_teacher_perplexity(
    teacher: Teacher, windows: EvaluationWindows, folder: RunDirectory, console: Console
) -> float:
    """The teacher's perplexity on the run's windows, measured once a run and kept in its metrics."""
    known = from_main([line["teacher_perplexity"] for line in folder.metrics() if "teacher_perplexity" in line])
    if known:
        return float(known[0])
    with console.status("measuring the teacher's perplexity"):
        result = from_main(measure_perplexity(teacher.hidden_states_uncompiled, teacher.head, windows))
    if is_main_process():
        folder.append_metrics(step=0, teacher_perplexity=result.perplexity)
    console.print(f"teacher perplexity {result.perplexity:,.2f} ({windows.statement})", highlight=False)
    return result.perplexity
