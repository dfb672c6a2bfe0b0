"""`training.batch_size: auto`: the largest micro-batch that fits the GPU and still pays, found by trying a few."""

from collections.abc import Callable
from dataclasses import replace

import torch
from accelerate import Accelerator
from rich.console import Console

from asnn_goose.config import Recipe
from asnn_goose.errors import MachineError
from asnn_goose.models.compiling import CompiledForm
from asnn_goose.training.distributed import from_main
from asnn_goose.training.memory import peak_memory_bytes
from asnn_goose.training.prepare import replaced_blocks, stage_batches
from asnn_goose.training.rows import PreparedText
from asnn_goose.training.stages import plan_stages
from asnn_goose.training.work import RunMaterial, StageWork, build_work

MOST_TOKENS = 32_768
"""Tokens a micro-batch holds at most: a larger one takes fewer steps of a budget in tokens, for little more speed."""
MEMORY_SHARE = 0.85
"""Share of the GPU's memory that a step may take; the rest is for evaluation and fragmentation."""
CPU_BATCH = 8
"""What a CPU takes: its arithmetic is busy with a few rows, and its memory tells nothing about speed."""
MULTIPLE = 8
"""From this size on a batch is a multiple of it, which fills the tiles of a matrix unit."""
SMALL = (1, 3)
"""Batches whose peaks give the memory of a row and of everything else."""


def fitting_batch(peak_bytes: Callable[[int], int], room: int, most: int) -> int:
    """The largest batch of at most `most` rows whose step stays within `room` bytes.

    A step's peak is taken to be linear in its rows, measured at two small sizes; the found size is then tried, and
    made smaller by a quarter until it does fit.

    Args:
        peak_bytes: Runs one step of so many rows and returns its peak; may raise torch's OutOfMemoryError.
        room: Bytes that a step may take.
        most: Rows above which nothing is gained.

    Raises:
        torch.OutOfMemoryError: One row does not fit.
    """
    fewer, more = SMALL
    least = peak_bytes(fewer)
    try:
        row = (peak_bytes(more) - least) / (more - fewer)
    except torch.OutOfMemoryError:
        return fewer
    found = most if row <= 0 else min(most, int((room - least) / row) + fewer)
    while True:
        found = rounded_batch(found)
        if found <= fewer:
            return fewer
        try:
            if peak_bytes(found) <= room:
                return found
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        found = found * 3 // 4


def rounded_batch(rows: int) -> int:
    """The next smaller multiple of `MULTIPLE`, or power of two below it; at least 1."""
    if rows >= MULTIPLE:
        return rows // MULTIPLE * MULTIPLE
    return 1 << max(rows, 1).bit_length() - 1


def resolve_batch_size(
    recipe: Recipe, material: RunMaterial, text: PreparedText, accelerator: Accelerator, console: Console
) -> Recipe:
    """The recipe with a number of rows in place of `auto`, the same in every process and after a resume.

    A stage that states no batch of its own gets so many rows that they hold as many tokens.

    Raises:
        MachineError: One row does not fit the GPU.
    """
    if recipe.training.batch_size != "auto":
        return recipe
    known = from_main([line["batch_size"] for line in material.folder.metrics() if "batch_size" in line])
    if known:
        return with_batch_size(recipe, int(known[0]))
    rows = CPU_BATCH
    if accelerator.device.type == "cuda":
        most = max(1, MOST_TOKENS // recipe.training.window)
        with console.status("trying how many rows fit the GPU"):
            rows = probed_batch(with_batch_size(recipe, 1), material, text, accelerator, most)
        rows = int(accelerator.gather(torch.tensor([rows], device=accelerator.device)).min())
    if accelerator.is_main_process:
        material.folder.append_metrics(step=0, batch_size=rows)
    console.print(f"batch size {rows}: {rows * recipe.training.window:,} tokens a micro-batch", highlight=False)
    return with_batch_size(recipe, rows)


def with_batch_size(recipe: Recipe, rows: int) -> Recipe:
    """The recipe with this batch size, and its stages with as many tokens."""
    window = recipe.training.window
    stages = tuple(
        stage.model_copy(update={"batch_size": stage.batch_size or max(1, rows * window // (stage.window or window))})
        for stage in recipe.stages
    )
    training = recipe.training.model_copy(update={"batch_size": rows})
    return recipe.model_copy(update={"training": training, "stages": stages})


def probed_batch(recipe: Recipe, material: RunMaterial, text: PreparedText, accelerator: Accelerator, most: int) -> int:
    """The largest batch, of at most `most` rows, of the stage that trains most weights; nothing is left changed.

    Nothing is compiled for it: that takes longer than trying, and a step that is not compiled takes more memory.
    """
    teacher = material.teacher
    material = replace(material, teacher=replace(teacher, body=CompiledForm(teacher.body.plain, None, "teacher")))
    plain = recipe.model_copy(update={"training": recipe.training.model_copy(update={"compile": False})})
    distilled = [plan for plan in plan_stages(plain, 1) if plan.kind == "distill"]
    plan = max(distilled or plan_stages(plain, 1), key=lambda plan: plan.train == "all")
    batches = stage_batches(plain, plan, text, accelerator)
    work = build_work(plan, plain, material, replaced_blocks(plain, material.teacher), batches)
    trained = sum(p.numel() * p.element_size() for p in work.module.parameters() if p.requires_grad)
    # What the optimizer will hold: two moments of each weight.
    room = int(MEMORY_SHARE * torch.cuda.get_device_properties(accelerator.device).total_memory) - 2 * trained
    ids = batches.batch(0)[:1, : recipe.training.window].to(accelerator.device)
    try:
        return fitting_batch(lambda rows: _step_peak(work, ids.expand(rows, -1).contiguous(), accelerator), room, most)
    except torch.OutOfMemoryError as error:
        raise MachineError(
            f"not even one row of {ids.shape[1]} tokens fits the GPU ({str(error).splitlines()[0]}): lower "
            "training.window or objective.chunk_tokens, or set training.activation_checkpointing=true"
        ) from error
    finally:
        # The run's own peak is measured from here on.
        torch.cuda.reset_peak_memory_stats(accelerator.device)


def _step_peak(work: StageWork, ids: torch.Tensor, accelerator: Accelerator) -> int:
    """The most bytes in use during a forward and a backward of these rows."""
    torch.cuda.reset_peak_memory_stats(accelerator.device)
    try:
        with accelerator.autocast():
            record = work.module(ids, work.observe(ids))
        (record.loss / ids.numel()).backward()
        return peak_memory_bytes(accelerator.device)
    finally:
        work.module.zero_grad(set_to_none=True)
