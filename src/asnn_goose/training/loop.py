"""The training loop: micro-batches to a step, steps to a run, with logging, evaluation, checkpoints and guards."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import AdamW

from asnn_goose.config import TrainingBySteps, TrainingOptions
from asnn_goose.data.batches import BatchPlan
from asnn_goose.errors import TrainingDivergedError
from asnn_goose.evaluation.perplexity import EvaluationWindows, perplexity_of
from asnn_goose.evaluation.student import probe_spikes, student_perplexity
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.teacher import Teacher
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.checkpoint import (
    RunState,
    load_checkpoint,
    restore_tensors,
    save_checkpoint,
    training_tensors,
)
from asnn_goose.training.guards import MOST_ROLL_BACKS, NonFiniteGuard
from asnn_goose.training.memory import memory_bytes
from asnn_goose.training.optimizer import build_optimizer, learning_rate_at, set_learning_rate
from asnn_goose.training.progress import ProgressLine
from asnn_goose.training.step import DistillationStep

PROBE_TOKENS = 2048


@dataclass(frozen=True)
class RunMaterial:
    """What a run works on: models, data, beginnings of held-out text to continue, and where it leaves its traces."""

    teacher: Teacher
    student: GooseForCausalLM
    plan: BatchPlan
    windows: EvaluationWindows
    beginnings: tuple[Tensor, ...]
    folder: RunDirectory


StopReason = Literal["budget", "early_stopping", "interrupted"]


def total_steps(training: TrainingOptions, processes: int) -> int:
    """Optimizer steps of the whole budget; a budget in tokens is rounded up."""
    if isinstance(training, TrainingBySteps):
        return training.steps
    tokens: int = training.tokens  # type: ignore[attr-defined]
    return math.ceil(tokens / tokens_per_step(training, processes))


def tokens_per_step(training: TrainingOptions, processes: int) -> int:
    """Tokens one optimizer step sums over, on all processes together."""
    return training.batch_size * training.accumulation * training.window * processes


class TrainingLoop:
    """Trains the student of a run until its budget is done, it stops improving, or it is asked to stop.

    Args:
        accelerator: Device, precision and processes.
        step: The differentiable step, not yet wrapped.
        material: Models, data and run folder.
        training: Budget and optimizer.
        state: Where the run starts, zeros for a fresh one.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        step: DistillationStep,
        material: RunMaterial,
        training: TrainingOptions,
        state: RunState,
    ) -> None:
        self.accelerator, self.material, self.training, self.state = accelerator, material, training, state
        self.module = step
        self.step, self.optimizer = accelerator.prepare(step, build_optimizer(step, training))
        self.guard = NonFiniteGuard(accelerator.device)
        self.guard.skipped += state.skipped
        self.steps = total_steps(training, accelerator.num_processes)
        self.tokens_per_step = tokens_per_step(training, accelerator.num_processes)
        self._sums = torch.zeros(5, dtype=torch.float64, device=accelerator.device)
        self._logged_steps, self._logged_seconds = 0, state.seconds
        self._memory_samples: list[int] = []

    @property
    def bare_optimizer(self) -> AdamW:
        """The optimizer below accelerate's wrapper."""
        optimizer: AdamW = self.optimizer.optimizer
        return optimizer

    @property
    def mean_memory_bytes(self) -> int | None:
        """Mean of the memory samples taken at logging intervals, in bytes."""
        return sum(self._memory_samples) // len(self._memory_samples) if self._memory_samples else None

    def run(self, progress: ProgressLine, stop_asked: Callable[[], bool]) -> StopReason:
        """Train; returns why it ended, the last state being saved."""
        if self.state.attempts == 0:
            self._evaluate(progress)
            self.save("last")
        while self.state.step < self.steps:
            self._train_step()
            progress.step(self.state.step)
            if not (self._is_due(self._intervals) or stop_asked()):
                continue
            # Skipped steps are known only after the log has read the counters, so every other act comes after it.
            self._log(progress)
            if self._is_due([self.training.evaluation_interval]):
                self._evaluate(progress)
                if self._no_longer_improves():
                    self.save("last")
                    return "early_stopping"
            if self._is_due([self.training.checkpoint_interval]) or stop_asked():
                self.save("last")
            if stop_asked() and self.state.step < self.steps:
                return "interrupted"
        return "budget"

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take weights, moments and generators from a checkpoint."""
        restore_tensors(tensors, self.module, self.bare_optimizer)

    def save(self, name: str) -> None:
        """Write the checkpoint `last` (keeping the one before it) or `best` (weights alone)."""
        if not self.accelerator.is_main_process:
            return
        best = name == "best"
        tensors = training_tensors(self.module, None if best else self.bare_optimizer)
        save_checkpoint(self.material.folder.checkpoints / name, self.state, tensors, keep_previous=not best)

    @property
    def _intervals(self) -> list[int]:
        training = self.training
        return [training.logging_interval, training.evaluation_interval, training.checkpoint_interval]

    def _is_due(self, intervals: list[int]) -> bool:
        return self.state.step >= self.steps or any(self.state.step % interval == 0 for interval in intervals)

    def _train_step(self) -> None:
        started = time.perf_counter()
        plan, material = self.material.plan, self.material
        set_learning_rate(self.bare_optimizer, learning_rate_at(self.state.step, self.steps, self.training))
        rows_seen, losses = self.state.rows_seen, []
        for micro_batch in range(self.training.accumulation):
            ids = plan.batch(rows_seen).to(self.accelerator.device, non_blocking=True)
            rows_seen = plan.advance(rows_seen)
            teacher_hidden = material.teacher.hidden_states(ids)
            last = micro_batch == self.training.accumulation - 1
            with nullcontext() if last else self.accelerator.no_sync(self.step):
                record = self.step(ids, teacher_hidden)
                self.accelerator.backward(record.loss * self.accelerator.num_processes / self.tokens_per_step)
            counts = record.kl_tokens, record.cross_entropy_tokens
            losses.append(
                torch.stack(
                    (
                        record.loss / counts[0],
                        record.kl_nats / counts[0],
                        record.cross_entropy_nats / counts[1],
                    )
                )
            )
        means = torch.stack(losses).mean(dim=0).detach().double()
        self._update(means)
        seconds = self.state.seconds + time.perf_counter() - started
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            attempts=self.state.attempts + 1,
            rows_seen=rows_seen,
            seconds=seconds,
        )

    def _update(self, means: Tensor) -> None:
        norm = self.accelerator.clip_grad_norm_(self.step.parameters(), self.training.clip_norm)
        must_skip = self.guard.judge(norm, means[0])
        if self.accelerator.scaler is None:
            # A fused AdamW leaves weights, moments and step counts alone where found_inf is 1: no host sync.
            self.bare_optimizer.found_inf = must_skip  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clipped = (norm > self.training.clip_norm).double()
        figures = torch.cat((means, norm.double().reshape(1), clipped.reshape(1)))
        self._sums += torch.where(must_skip.bool(), torch.zeros_like(figures), figures)
        self._logged_steps += 1

    def _log(self, progress: ProgressLine) -> None:
        reading = self.guard.read()
        newly_skipped = reading.skipped - self.state.skipped
        finite_steps = max(self._logged_steps - newly_skipped, 1)
        # A skipped step is not a step done: the budget and the schedule move back by it.
        self.state = replace(self.state, step=self.state.step - newly_skipped, skipped=reading.skipped)
        sums = self.accelerator.reduce(self._sums, "mean")
        loss, kl, cross_entropy, norm, clip_rate = (sums / finite_steps).tolist()
        seconds = max(self.state.seconds - self._logged_seconds, 1e-9)
        tokens_per_second = self._logged_steps * self.tokens_per_step / seconds
        densities = self._probe_densities()
        density = sum(densities.values()) / len(densities) if densities else 0.0
        self._memory_samples.append(memory_bytes(self.accelerator.device))
        scaler = self.accelerator.scaler
        self._append_metrics(
            loss_nats=loss,
            kl_nats=kl,
            cross_entropy_nats=cross_entropy,
            perplexity=perplexity_of(cross_entropy),
            learning_rate=self.bare_optimizer.param_groups[0]["lr"],
            gradient_norm=norm,
            clip_rate=clip_rate,
            scaler_scale=None if scaler is None else scaler.get_scale(),
            tokens=self.state.step * self.tokens_per_step,
            tokens_per_second=tokens_per_second,
            step_ms=1000.0 * seconds / self._logged_steps,
            memory_bytes=self._memory_samples[-1],
            skipped_steps=self.state.skipped,
            density=density,
            **{f"density.{name}": value for name, value in densities.items()},
        )
        progress.step(self.state.step)
        progress.figures(self.state.step, loss, perplexity_of(cross_entropy), tokens_per_second, density)
        self._start_interval()
        # A gradient scaler skips steps while it searches for its scale; that is no divergence.
        searching = scaler is not None and scaler.get_scale() >= 1.0
        if reading.must_roll_back and not searching:
            self._roll_back(progress)

    def _append_metrics(self, **values: float | None) -> None:
        if self.accelerator.is_main_process:
            self.material.folder.append_metrics(step=self.state.step, **values)
            self.accelerator.log({key: value for key, value in values.items() if value is not None}, self.state.step)

    def _start_interval(self) -> None:
        self._sums.zero_()
        self._logged_steps, self._logged_seconds = 0, self.state.seconds

    def _roll_back(self, progress: ProgressLine) -> None:
        if self.state.roll_backs >= MOST_ROLL_BACKS:
            raise TrainingDivergedError(
                f"loss or gradient stayed non-finite at step {self.state.step} after {MOST_ROLL_BACKS} roll-backs: "
                "lower training.learning_rate, lengthen training.warmup_steps, or use training.precision=fp32"
            )
        checkpoint = load_checkpoint(self.material.folder.checkpoints / "last")
        self.restore(checkpoint.tensors)
        # The cursor stays where it is: the rows that broke the run are not met again.
        self.state = replace(
            self.state,
            step=checkpoint.state.step,
            roll_backs=self.state.roll_backs + 1,
        )
        self.guard.forget_row()
        self.material.folder.cut_metrics(self.state.step)
        progress.say(
            f"loss or gradient non-finite several steps in a row: back to step {self.state.step} "
            f"(roll-back {self.state.roll_backs} of {MOST_ROLL_BACKS})"
        )

    def _evaluate(self, progress: ProgressLine) -> None:
        result = student_perplexity(self.material.student, self.material.windows, self.training.batch_size)
        perplexity = result.perplexity
        self._append_metrics(evaluation_perplexity=perplexity, evaluation_loss_nats=result.loss_nats)
        progress.say(f"step {self.state.step}: evaluation perplexity {perplexity:,.2f}")
        if not math.isfinite(perplexity):
            return
        stopping, reference = self.training.early_stopping, self.state.stopping_perplexity
        if reference is None or stopping is None or perplexity < reference - stopping.min_delta:
            self.state = replace(self.state, stopping_perplexity=perplexity, stopping_step=self.state.step)
        if self.state.best_perplexity is None or perplexity < self.state.best_perplexity:
            self.state = replace(self.state, best_perplexity=perplexity, best_step=self.state.step)
            self.save("best")

    def _no_longer_improves(self) -> bool:
        stopping, since = self.training.early_stopping, self.state.stopping_step
        if stopping is None or since is None:
            return False
        return self.state.step - since >= stopping.patience_steps

    def _probe_densities(self) -> dict[str, float]:
        ids = self.material.windows.probe(PROBE_TOKENS).to(self.accelerator.device)
        return {name: float(entry.density) for name, entry in probe_spikes(self.material.student, ids).items()}
