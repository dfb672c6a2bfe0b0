"""Jobs that two processes do together, for the tests beside this: python process_pair.py FOLDER, with RANK set.

FOLDER/jobs.json lists them; what a process found is left as FOLDER/NAME-RANK.json.
"""

import faulthandler
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console
from torch import Tensor, distributed, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from asnn_goose.config import Recipe
from asnn_goose.config_features import HiddenAlignment
from asnn_goose.config_objective import Objective
from asnn_goose.config_temperature import LearnedTemperature
from asnn_goose.data.batches import BatchPlan
from asnn_goose.data.feed import Batch
from asnn_goose.errors import GooseError
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.sublayers import BlockRecord, SublayerRecord
from asnn_goose.objectives.layer_maps import Depths
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.align import AlignmentStep
from asnn_goose.training.checkpoint import restore_tensors, training_tensors
from asnn_goose.training.distill import distill
from asnn_goose.training.distributed import ProcessStep, decided_by_main, join_processes, on_any
from asnn_goose.training.feature_terms import FeatureSetting, FeatureTerms
from asnn_goose.training.loop import TrainingLoop
from asnn_goose.training.optimizer import CLIPPED
from asnn_goose.training.sharding import shard_student
from asnn_goose.training.step import DistillationStep, TeacherView

RANK = int(os.environ.get("RANK", "0"))
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
VOCABULARY, WIDTH, TIME, ROWS = 53, 16, 12, 2
LONGEST_SECONDS = 200
CLIP = 0.05
"""Below the gradients' norm, so that they are scaled."""


def noted_rows(log: list[tuple[int, list[str]]]) -> Any:
    """A patch that notes, for every batch taken, the number of its first row and what its rows are."""
    original = BatchPlan.batch

    def batch(plan: BatchPlan, rows_seen: int) -> Tensor:
        ids = original(plan, rows_seen)
        rows = [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:12] for row in ids]
        log.append((rows_seen + plan.rank * plan.batch_size, rows))
        return ids

    return patch.object(BatchPlan, "batch", batch)


def signalled_at(step: int) -> Any:
    """A patch that sends this process a SIGTERM before it takes the step after `step` finished ones."""
    original = TrainingLoop._train_step

    def train_step(loop: TrainingLoop) -> None:
        if loop.state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(loop)

    return patch.object(TrainingLoop, "_train_step", train_step)


def lost_at(attempt: int) -> Any:
    """A patch that makes this process's loss infinite at one attempt, its gradients being sound."""
    original = TrainingLoop._update

    def update(loop: TrainingLoop, means: dict[str, Tensor]) -> None:
        if loop.state.attempts == attempt:
            means["loss"] = means["loss"] + torch.inf
        original(loop, means)

    return patch.object(TrainingLoop, "_update", update)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """A whole run of a recipe, disturbed on the second process alone where the job asks for it."""
    rows: list[tuple[int, list[str]]] = []
    console = Console(file=StringIO(), width=200)
    folder = RunDirectory(Path(job["out"]))
    before = len(TOUCHED)
    with ExitStack() as patches:
        patches.enter_context(noted_rows(rows))
        if RANK == 1 and "signal" in job:
            patches.enter_context(signalled_at(job["signal"]))
        if RANK == 1 and "lost" in job:
            patches.enter_context(lost_at(job["lost"]))
        outcome = distill(Recipe.model_validate(job["recipe"], strict=False), folder, console)
    written = [path for path in TOUCHED[before:] if Path(path).is_relative_to(folder.path)]
    ended = outcome.results is not None
    skipped = outcome.results.counters.steps_skipped if outcome.results else None
    return {"rows": rows, "said": console.file.getvalue(), "written": written, "ended": ended, "skipped": skipped}


def student_of(mixer: str, tied: bool) -> GooseForCausalLM:
    """A seeded student in float64, with scalars and vectors among its weights."""
    torch.manual_seed(1)
    spikes = {"sites": ["k", "v"], "levels": 1, "alpha": 0.7, "learn_alpha": True, "amplitude": "scalar",
              "scale": "none", "surrogate": {"kind": "recorded_ste"}}  # fmt: skip
    config = GooseConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=3, max_position_embeddings=32, mixer=mixer,
        num_attention_heads=4, num_key_value_heads=2, head_dim=4, positions="learned", tie_word_embeddings=tied,
        scan_backend="torch", spikes=spikes,
    )  # fmt: skip
    return GooseForCausalLM(config).double()


def seen_by(kind: str, process: int, micro_batch: int) -> tuple[Any, ...]:
    """What a step of that kind is given on a process: token ids, and what is seen of a teacher."""
    generator = torch.Generator().manual_seed(10 * process + micro_batch)

    def draw(width: int) -> Tensor:
        return torch.randn(ROWS, TIME, width, dtype=torch.float64, generator=generator)

    ids = torch.randint(0, VOCABULARY, (ROWS, TIME), generator=generator)
    if kind == "align":
        return ids, tuple(BlockRecord(SublayerRecord(draw(WIDTH), draw(WIDTH))) for _ in range(3))
    return ids, TeacherView(draw(WIDTH), tuple(draw(WIDTH) for _ in range(3)))


def build_step(kind: str, student: GooseForCausalLM) -> nn.Module:
    """A step of that kind, the align stage holding everything but the mixers."""
    student.requires_grad_(kind != "align")
    if kind == "align":
        for mixer in student.model.mixers():
            mixer.requires_grad_()
        return AlignmentStep(student)
    head = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective = Objective(
        temperature=LearnedTemperature(start=2.0), cross_entropy_weight=0.5, hidden_alignment=HiddenAlignment()
    )
    setting = FeatureSetting(Depths(3, 3, (0, 1, 2)), (WIDTH, WIDTH), LinearHead(head), nn.Identity())
    step = DistillationStep(student, LinearHead(head), objective, FeatureTerms(objective, setting, seed=0))
    step.temperature.double()
    return step


def counted(step: nn.Module) -> list[nn.Parameter]:
    """The weights whose gradients count into the norm."""
    return list(step.student.parameters())


def build_optimizer(step: nn.Module) -> AdamW:
    """AdamW with our kinds of groups, a temperature that learns outside of clipping."""
    clipped = [parameter for parameter in counted(step) if parameter.requires_grad]
    groups = [{"params": [p for p in clipped if p.ndim >= 2], "weight_decay": 0.1},
              {"params": [p for p in clipped if p.ndim < 2], "weight_decay": 0.0}]  # fmt: skip
    if isinstance(step, DistillationStep):
        groups.append({"params": [step.temperature.raw], "weight_decay": 0.0, CLIPPED: False})
    return AdamW(groups, lr=1e-2, fused=True)


def compare_shards(job: dict[str, Any]) -> dict[str, Any]:
    """Two stages of one step each, on shards and on a whole student that is given all processes' rows."""
    join_processes()
    accelerator = Accelerator(mixed_precision="no")
    whole, student = (student_of(job["mixer"], job["tied"]) for _ in range(2))
    root, found = shard_student(student, accelerator), {}
    for kind in job["kinds"]:
        step, expected = build_step(kind, student), build_step(kind, whole)
        process_step, reference = ProcessStep(accelerator, step, build_optimizer(step), root), build_optimizer(expected)
        for micro_batch in range(2):
            given = seen_by(kind, RANK, micro_batch)
            if micro_batch == 0:
                with process_step.accumulating():
                    accelerator.backward(process_step(*given).loss)
            else:
                accelerator.backward(process_step(*given).loss)
            for process in range(2):
                # Averaged over processes, as gradients are.
                (expected(*seen_by(kind, process, micro_batch)).loss / 2).backward()
        norms = process_step.clip(CLIP), clip_grad_norm_(counted(expected), CLIP)
        found[f"{kind} norm"] = difference({"": norms[0]}, {"": norms[1]})
        process_step.optimizer.optimizer.found_inf = torch.zeros(())
        process_step.optimizer.step()
        reference.step()
        tensors = training_tensors(step, process_step.optimizer.optimizer)
        found[kind] = difference(tensors, training_tensors(expected, reference))
        process_step.optimizer.zero_grad()
        reference.zero_grad()
    restored = restored_exactly(step, process_step.optimizer.optimizer, tensors)
    shards = sum(parameter.to_local().numel() for parameter in student.parameters() if hasattr(parameter, "to_local"))
    agreed = {
        "on any": [on_any(RANK == 1, accelerator.device), on_any(False, accelerator.device)],
        "decided": [decided_by_main(lambda: RANK), message_of(lambda: decided_by_main(fail))],
    }
    accelerator.end_training()
    return {**found, **agreed, "restored": restored, "share": shards / whole.num_parameters()}


class Shown:
    """What a stage works with, as far as a micro-batch needs it: the view that was set last, for any ids."""

    view: Any = None

    def see(self, batch: Batch) -> Any:
        """The view."""
        return self.view


def compare_replays(job: dict[str, Any]) -> dict[str, Any]:
    """One step of micro-batches that would be replayed on a GPU, on a student that the second process has otherwise."""
    join_processes()
    accelerator = Accelerator(mixed_precision="no")
    whole, student = (student_of(job["mixer"], tied=True) for _ in range(2))
    if RANK == 1:
        torch.nn.init.zeros_(student.model.layers[0].feed_forward.up.weight)
    step, expected = build_step("distill", student), build_step("distill", whole)
    process_step = ProcessStep(accelerator, step, build_optimizer(step), None, replays=True)
    reference, work = build_optimizer(expected), Shown()
    for micro_batch in range(2):
        ids, work.view = seen_by("distill", RANK, micro_batch)
        process_step.micro_batch(Batch(ids, None), work, 1.0, last=micro_batch == 1)
        for process in range(2):
            (expected(*seen_by("distill", process, micro_batch)).loss / 2).backward()
    norms = process_step.clip(CLIP), clip_grad_norm_(counted(expected), CLIP)
    process_step.optimizer.optimizer.found_inf = torch.zeros(())
    process_step.optimizer.step()
    reference.step()
    tensors, wanted = training_tensors(step, process_step.optimizer.optimizer), training_tensors(expected, reference)
    process_step.forget_gradients()
    left = max(float(parameter.grad.abs().max()) for parameter in step.parameters() if parameter.grad is not None)
    accelerator.end_training()
    return {"norm": difference({"": norms[0]}, {"": norms[1]}), "step": difference(tensors, wanted), "left": left}


def fail() -> None:
    """What only the main process is asked to do."""
    raise GooseError(f"rank {RANK} cannot")


def message_of(act: Callable[[], Any]) -> str | None:
    """What an act failed with."""
    try:
        act()
    except GooseError as error:
        return str(error)
    return None


def difference(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference of any tensor, relative to that tensor's largest entry."""
    assert tensors.keys() == expected.keys()
    return max(
        float((tensors[name] - expected[name]).abs().max() / expected[name].abs().max().clamp_min(1e-9))
        for name in tensors
        if not name.startswith("generator")
    )


def restored_exactly(step: nn.Module, optimizer: AdamW, tensors: dict[str, Tensor]) -> bool:
    """Whether weights and moments survive being overwritten and restored from whole tensors."""
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.zero_()
    optimizer.state.clear()
    restore_tensors(tensors, step, optimizer)
    again = training_tensors(step, optimizer)
    return again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in again)


TOUCHED: list[str] = []
KINDS = {"run": run, "compare shards": compare_shards, "compare replays": compare_replays}


def note_writes(event: str, arguments: tuple[Any, ...]) -> None:
    """Keep the paths that this process opens for writing, makes, renames or removes."""
    if (event == "open" and arguments[2] & WRITING) or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        TOUCHED.append(str(arguments[0]))


def main() -> None:
    """Do all jobs, each in a process group of its own."""
    # Should the two wait for one another for ever, each says where.
    faulthandler.dump_traceback_later(LONGEST_SECONDS, exit=True)
    torch.set_num_threads(1)
    sys.addaudithook(note_writes)
    folder = Path(sys.argv[1])
    for job in json.loads((folder / "jobs.json").read_text()):
        os.environ["MASTER_PORT"] = str(job["port"])
        found = KINDS[job["kind"]](job)
        assert not distributed.is_initialized()
        AcceleratorState._reset_state(reset_partial_state=True)
        (folder / f"{job['name']}-{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
