"""Several processes as one run: what they agree on, who writes, and a step whose gradients are averaged over all.

Each process takes rows of its own and holds the whole teacher. The student lies whole on each of them (DDP), or in
shards (`sharding.py`).
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from io import StringIO
from typing import Any, TypeVar, cast

import torch
import torch._dynamo
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from rich.console import Console
from torch import Tensor, distributed, nn
from torch.optim import AdamW

from asnn_goose.data.feed import Batch
from asnn_goose.errors import CheckpointError, ConfigError, GooseError
from asnn_goose.training.optimizer import unclipped
from asnn_goose.training.replay import ReplayedMicroBatch
from asnn_goose.training.sharding import ShardedStudent, clip_shards, part_groups, reshard, without_averaging
from asnn_goose.training.stages import StagePlan
from asnn_goose.training.step import StepRecord
from asnn_goose.training.work import StageWork

LONGEST_WAIT = timedelta(hours=12)
"""How long processes wait for one of them, which may be writing the teacher's text meanwhile."""

Found = TypeVar("Found")


def join_processes() -> None:
    """Connect the processes that `torchrun` or `accelerate launch` started; a plain start is a run of its own.

    Without a GPU they talk through gloo: left to itself, accelerate would take each for a run of its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)


def check_launch(accelerator: Accelerator) -> None:
    """Refuse ways of spreading a run that accelerate knows and this package does not.

    Raises:
        ConfigError: accelerate was told to shard the model itself, or to hand it to another library.
    """
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in known:
        raise ConfigError(
            f"accelerate was launched for {accelerator.distributed_type.value}, which would not average the gradients "
            "of small weights: launch with --multi_gpu alone, and shard with training.sharding=fsdp2"
        )


def process_count() -> int:
    """Processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def main_console(console: Console) -> Console:
    """The console on the main process; one that nobody sees on the others."""
    return console if is_main_process() else Console(file=StringIO(), quiet=True)


def from_main(value: Found) -> Found:
    """The main process's value, on every process: measurements may differ in their last bits, decisions must not."""
    if process_count() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def decided_by_main(decide: Callable[[], Found]) -> Found:
    """What the main process alone decides, on every process; they are connected first, where several were started.

    Raises:
        GooseError: The main process could not decide; it is raised on every process.
    """
    join_processes()
    decision: Found | GooseError | None = None
    if is_main_process():
        try:
            decision = decide()
        except GooseError as error:
            decision = error
    decision = from_main(decision)
    if isinstance(decision, GooseError):
        raise decision
    return cast(Found, decision)


def on_any(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process; all of them must ask."""
    if process_count() == 1:
        return flag
    found = torch.tensor(float(flag), device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)


def spread_over(plan: StagePlan, processes: int) -> StagePlan:
    """A stage planned for some number of processes, on another number of them: each step takes the same rows.

    Micro-batches become no larger than planned, so that they fit where they fitted.

    Raises:
        CheckpointError: The rows of a step cannot be shared out evenly.
    """
    if processes == plan.processes:
        return plan
    if plan.rows_per_step % processes:
        raise CheckpointError(
            f"a step of this run takes {plan.rows_per_step} rows, which {processes} processes cannot share evenly; "
            "resume it with a number of processes that divides them"
        )
    rows = plan.rows_per_step // processes
    accumulation = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= plan.batch_size)
    return replace(plan, processes=processes, batch_size=rows // accumulation, accumulation=accumulation)


class ProcessStep:
    """A stage's differentiable step, run by all processes on rows of their own, with gradients averaged over them.

    Args:
        accelerator: Device, precision and processes.
        module: The step, on the student itself.
        optimizer: Over the step's weights.
        sharded: The student's root if it is sharded.
        replays: Whether micro-batches are recorded and replayed. DDP is left out then, since its hooks cannot be
            recorded: gradients are averaged once a step, when all are there.

    Raises:
        ConfigError: Replays in fp16, whose gradient scaler chooses its scale on the way.
        ValueError: Replays of a sharded student.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        optimizer: AdamW,
        sharded: ShardedStudent | None,
        replays: bool = False,
    ) -> None:
        self.accelerator, self.module, self.sharded, self.replays = accelerator, module, sharded, replays
        self.wrapped: Any = sharded
        self.unclipped = unclipped(optimizer)
        self._replayed: ReplayedMicroBatch | None = None
        # What the stage before left would be added to, and its norm counted.
        for parameter in module.parameters():
            parameter.grad = None
        if replays:
            if accelerator.scaler is not None:
                raise ConfigError("training.cuda_graphs does not go with fp16: use training.precision=bf16 or fp32")
            if sharded is not None:
                raise ValueError("replays work on weights where they are, and those of a sharded student move")
            for parameter in module.parameters() if accelerator.num_processes > 1 else ():
                distributed.broadcast(parameter.detach(), src=0)
            self.wrapped, self.optimizer = module, accelerator.prepare(optimizer)
        elif sharded is None:
            if accelerator.num_processes > 1:
                # Blocks are compiled one by one: nothing is left to be split so that gradients leave early.
                torch._dynamo.config.optimize_ddp = False
            self.wrapped, self.optimizer = accelerator.prepare(module, optimizer)
        else:
            part_groups(optimizer)
            self.optimizer = accelerator.prepare(optimizer)

    def __call__(self, *arguments: Any) -> StepRecord:
        """The step's record of one micro-batch of this process."""
        if self.replays:
            with self.accelerator.autocast():
                return cast(StepRecord, self.module(*arguments))
        if self.sharded is None:
            return cast(StepRecord, self.wrapped(*arguments))
        with self.accelerator.autocast():
            return cast(StepRecord, self.wrapped(self.module, *arguments))

    def micro_batch(self, batch: Batch, work: StageWork, factor: float, last: bool) -> dict[str, Tensor]:
        """Add the gradients of factor * loss on these rows to those before; gives the means over their tokens.

        With the `last` micro-batch of a step gradients are averaged over processes, at the latest by `clip`. All
        micro-batches are of one stage: of one `work`, `factor` and shape.
        """
        if self.replays:
            if self._replayed is None:
                weights = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
                accumulates = not last or self.accelerator.num_processes > 1
                self._replayed = ReplayedMicroBatch(work, partial(self._learn, factor), weights, accumulates)
            return self._replayed(batch)
        seen = work.see(batch)
        with nullcontext() if last else self.accumulating():
            return self._learn(factor, batch.ids, seen)

    def _learn(self, factor: float, ids: Tensor, seen: Any) -> dict[str, Tensor]:
        record = self(ids, seen)
        self.accelerator.backward(record.loss * factor)
        return {"loss": record.loss.detach() / record.tokens, **record.means}

    def forget_gradients(self) -> None:
        """Make ready for the next step."""
        if self._replayed is not None:
            self._replayed.forget()
        else:
            self.optimizer.zero_grad(set_to_none=True)

    def accumulating(self) -> AbstractContextManager[None]:
        """Within it, gradients are summed on each process and not yet averaged."""
        if self.sharded is None:
            return cast(AbstractContextManager[None], self.accelerator.no_sync(self.wrapped))
        return without_averaging(self.sharded)

    def clip(self, limit: float) -> Tensor:
        """Scale the gradients that are clipped down to a norm of at most `limit`; returns their norm before."""
        if self._replayed is not None and self._replayed.gradients is not None and self.accelerator.num_processes > 1:
            distributed.all_reduce(self._replayed.gradients.flat)
            self._replayed.gradients.flat /= self.accelerator.num_processes
        if self.sharded is None:
            counted = [parameter for parameter in self.wrapped.parameters() if parameter not in self.unclipped]
            return cast(Tensor, self.accelerator.clip_grad_norm_(counted, limit))
        return clip_shards(self.module.parameters(), limit, self.unclipped)

    @property
    def unclipped_gradients(self) -> list[Tensor]:
        """Those that the norm does not see, averaged once `clip` was called."""
        return [parameter.grad for parameter in self.unclipped if parameter.grad is not None]

    def look(self, act: Callable[..., Found], *arguments: Any) -> Found:
        """What a function finds in the student, without gradients; all processes look together, and find the same.

        A sharded student is seen in the precision that it trains in.
        """
        if self.sharded is None:
            return from_main(act(*arguments))
        with self.accelerator.autocast():
            found = self.wrapped(act, *arguments)
        reshard(self.sharded)
        return from_main(cast(Found, found))
