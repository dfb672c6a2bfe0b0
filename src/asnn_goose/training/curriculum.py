"""The order in which a run opens its rows: measured once, kept in the run folder, the same after a resume."""

import json
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float64, Int64
from rich.console import Console
from torch import Tensor, distributed, nn

from asnn_goose.config import Recipe
from asnn_goose.config_curriculum import Curriculum
from asnn_goose.data.curriculum import Course, pacing_phases
from asnn_goose.data.tokens import TokenRows
from asnn_goose.errors import CheckpointError, ConfigError, TrainingDivergedError
from asnn_goose.run_dir import RunDirectory, write_text_atomically
from asnn_goose.training.difficulty import measured_rows, pretrain, pretraining_rows, row_difficulties
from asnn_goose.training.distributed import decided_by_main, from_main, is_main_process, process_count
from asnn_goose.training.rows import PreparedText
from asnn_goose.training.stages import StagePlan
from asnn_goose.training.work import RunMaterial

FILE = "curriculum.json"
"""In the run folder: the measured rows, the easiest first, and how hard they are."""

Order = tuple[Int64[np.ndarray, " rows"], Float64[np.ndarray, " rows"]]
"""Rows by their place in the text, the easiest first, and how hard each of them is."""


def prepare_course(
    recipe: Recipe,
    plans: tuple[StagePlan, ...],
    material: RunMaterial,
    text: PreparedText,
    accelerator: Accelerator,
    resumes: bool,
    console: Console,
) -> Course | None:
    """What the recipe's curriculum opens when, if it has one; a run that resumes goes on with the order it had.

    Raises:
        CheckpointError: The order of a run that resumes is not there.
        ConfigError: There are fewer rows than parts.
        TrainingDivergedError: Pretraining left a student that predicts nothing.
    """
    curriculum = recipe.curriculum
    if curriculum is None:
        return None
    folder = material.folder
    if resumes:
        order, _ = decided_by_main(partial(read_order, folder))
    else:
        rows = text.rows(recipe.training.window)
        # A recipe with a mixture has no curriculum.
        assert isinstance(rows, TokenRows)
        with console.status("measuring how hard the rows are"):
            order, hardness = from_main(measure_order(recipe, curriculum, material, rows, accelerator))
        if is_main_process():
            write_order(folder, (order, hardness))
        console.print(
            f"curriculum: {len(order):,} of {len(rows):,} rows, difficulty {hardness[0]:.4g} to {hardness[-1]:.4g}",
            highlight=False,
        )
    run_steps = sum(plan.steps for plan in plans)
    try:
        return Course(order, pacing_phases(curriculum.pacing, run_steps, len(order)), recipe.training.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def measure_order(
    recipe: Recipe, curriculum: Curriculum, material: RunMaterial, rows: TokenRows, accelerator: Accelerator
) -> Order:
    """The measured rows from easy to hard; the student has the weights of pretraining afterwards, if it keeps them.

    Raises:
        TrainingDivergedError: Some row's difficulty is not finite.
    """
    student, training = material.student, recipe.training
    returns = curriculum.pretraining is not None and not curriculum.pretraining.keep
    before = [weight.detach().clone() for weight in student.parameters()] if returns else []
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    batches = pretraining_rows(rows, curriculum, training.seed)
    pretrain(student, material.teacher, trained, batches, curriculum, accelerator)
    share_weights(student)
    numbers = measured_rows(len(rows), training.rows, curriculum.batches, training.seed)
    parts: list[Tensor] = []
    for start in range(0, len(numbers), training.rows):
        ids = torch.from_numpy(rows.take(numbers[start : start + training.rows])).to(accelerator.device)
        parts.append(row_difficulties(student, material.teacher, ids, curriculum.difficulty))
    hardness = torch.cat(parts).cpu().double().numpy()
    with torch.no_grad():
        for weight, earlier in zip(student.parameters(), before, strict=False):
            weight.copy_(earlier)
    if not np.isfinite(hardness).all():
        raise TrainingDivergedError(
            "the difficulty of some rows is not finite: lower curriculum.pretraining.learning_rate, or use "
            "training.precision=fp32"
        )
    # Of equals, the row that comes first in the text.
    order = np.lexsort((numbers, hardness))
    return numbers[order], hardness[order]


def share_weights(student: nn.Module) -> None:
    """Give all processes the main one's weights: what each has trained by itself may differ in its last bits."""
    for weight in student.parameters() if process_count() > 1 else ():
        distributed.broadcast(weight.detach(), src=0)


def write_order(folder: RunDirectory, order: Order) -> None:
    """Keep the order in the run folder."""
    rows, hardness = (column.tolist() for column in order)
    write_text_atomically(folder.path / FILE, json.dumps({"rows": rows, "difficulty": hardness}) + "\n")


def read_order(folder: RunDirectory) -> Order:
    """The order that the run folder keeps.

    Raises:
        CheckpointError: It is not there, or damaged.
    """
    try:
        kept = json.loads((folder.path / FILE).read_text(encoding="utf-8"))
        return np.asarray(kept["rows"], dtype=np.int64), np.asarray(kept["difficulty"], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder.path / FILE} cannot be read ({error}), and without the order of its rows a run cannot go on: "
            "start it again with another --out"
        ) from error
