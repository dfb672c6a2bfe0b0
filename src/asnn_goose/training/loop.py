"""The training loop: micro-batches to a step, steps to a run, with logging, evaluation, checkpoints and guards."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from accelerate import Accelerator
from torch import Tensor
from torch.optim import AdamW

from asnn_goose.config_training import TrainingOptions
from asnn_goose.data.feed import BatchFeed
from asnn_goose.errors import TrainingDivergedError
from asnn_goose.evaluation.perplexity import perplexity_of
from asnn_goose.evaluation.student import probe_spikes, student_perplexity
from asnn_goose.measurements import curve, site_columns
from asnn_goose.models.compiling import compiled_graphs
from asnn_goose.objectives.temperature_watch import TemperatureWatch
from asnn_goose.training.checkpoint import (
    RunState,
    load_checkpoint,
    restore_tensors,
    save_checkpoint,
    training_tensors,
)
from asnn_goose.training.distributed import ProcessStep, from_main, on_any
from asnn_goose.training.guards import MOST_ROLL_BACKS, NonFiniteGuard
from asnn_goose.training.health_watch import HealthWatch
from asnn_goose.training.interval import IntervalSums
from asnn_goose.training.memory import memory_bytes
from asnn_goose.training.optimizer import learning_rates, set_learning_rate
from asnn_goose.training.progress import ProgressLine
from asnn_goose.training.rates import rate_share
from asnn_goose.training.stages import ends_early
from asnn_goose.training.stopping import counts_as_better, on_plateau, patience_ended
from asnn_goose.training.work import RunMaterial, StageWork

PROBE_TOKENS = 2048


StopReason = Literal["budget", "early_stopping", "exit", "interrupted"]


class TrainingLoop:
    """Trains the student of a run through one stage, until its budget is done, or something else ends it.

    Args:
        accelerator: Device, precision and processes.
        work: What the stage works with.
        material: Models, evaluation text and run folder.
        training: What all stages share.
        state: Where the run starts, zeros for a fresh one.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        work: StageWork,
        material: RunMaterial,
        training: TrainingOptions,
        state: RunState,
    ) -> None:
        self.accelerator, self.material, self.training, self.state = accelerator, material, training, state
        self.work, self.module, self.stage = work, work.module, work.plan
        replays = training.cuda_graphs and accelerator.device.type == "cuda"
        self.step = ProcessStep(accelerator, work.module, work.optimizer, material.sharded, replays)
        self.optimizer = self.step.optimizer
        self.guard = NonFiniteGuard(accelerator.device)
        self.guard.skipped += state.skipped
        self.last_step = state.stage_start + work.plan.steps
        self.feed = BatchFeed(
            work.batches, state.rows_seen, accelerator.device, training.workers, training.batches_ahead
        )
        self._interval, self._logged_seconds = IntervalSums(), state.seconds
        self._watch = TemperatureWatch(work.plan.objective.temperature)
        self.health = HealthWatch(material, self.step)
        known = from_main(curve(material.folder.metrics(), "evaluation_perplexity").values)
        self._evaluated = known[-1] if known else None
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
        while self.state.step < self.last_step:
            self._train_step()
            progress.step(self.state.step)
            # Of several processes one alone may be asked to stop; all of them look where all of them arrive.
            if not (self._is_due(self._intervals) or (stop_asked() and self.accelerator.num_processes == 1)):
                continue
            # Skipped steps are known only after the log has read the counters, so every other act comes after it.
            self._log(progress)
            if self._is_due([self.training.evaluation_interval]):
                ended = self._judge(progress)
                if ended is not None:
                    return ended
            stops = on_any(stop_asked(), self.accelerator.device)
            if self._is_due([self.training.checkpoint_interval]) or stops:
                self.save("last")
            if stops and self.state.step < self.last_step:
                return "interrupted"
        return "budget"

    def end_stage(self, reason: StopReason, progress: ProgressLine) -> None:
        """Write down what the stage reached, and move the state to the next one; nothing is saved yet."""
        name, steps = self.stage.name, self.state.step - self.state.stage_start
        perplexity = self._evaluated
        self._append_metrics(
            stage_end=name, stage_steps=steps, stage_tokens=steps * self.stage.tokens_per_step,
            stage_perplexity=perplexity, stage_reason=reason,
        )  # fmt: skip
        if perplexity is not None:
            ratio = perplexity / self.material.teacher_perplexity
            progress.say(f"after stage {name}: perplexity {perplexity:,.2f}, {ratio:,.3g}x the teacher's")
        self.state = replace(
            self.state, stage=self.stage.index + 1, stage_start=self.state.step, rows_seen=0, dynamics_baseline=None
        )
        if self.training.early_stopping is None or self.training.early_stopping.ends == "stage":
            self.state = replace(self.state, stopping_perplexity=None, stopping_step=None)

    def _judge(self, progress: ProgressLine) -> StopReason | None:
        """Evaluate, and say whether that ends the stage."""
        before = self._evaluated
        now = self._evaluate(progress)
        state, exit = self.state, self.stage.exit
        if patience_ended(self.training.early_stopping, state.stopping_step, state.stage_start, state.step):
            return "early_stopping"
        if ends_early(exit, before, now, self.material.teacher_perplexity):
            return "exit"
        lines = self.material.folder.metrics() if exit is not None and exit.plateau is not None else []
        flat = exit is not None and on_plateau(exit.plateau, lines, state.stage_start, state.step)
        return "exit" if from_main(flat) else None

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take weights, moments and generators from a checkpoint."""
        restore_tensors(tensors, self.module, self.bare_optimizer)

    def save(self, name: str) -> None:
        """Write the checkpoint `last` (keeping the one before it) or `best` (weights alone); it is there on return."""
        writes, best = self.accelerator.is_main_process, name == "best"
        if writes or self.material.sharded is not None:
            tensors = training_tensors(self.module, None if best else self.bare_optimizer, writes)
        if writes:
            save_checkpoint(self.material.folder.checkpoints / name, self.state, tensors, keep_previous=not best)
        self.accelerator.wait_for_everyone()

    @property
    def _intervals(self) -> list[int]:
        training = self.training
        return [training.logging_interval, training.evaluation_interval, training.checkpoint_interval]

    def _is_due(self, intervals: list[int]) -> bool:
        return self.state.step >= self.last_step or any(self.state.step % interval == 0 for interval in intervals)

    def _train_step(self) -> None:
        started = time.perf_counter()
        feed, stage = self.feed, self.stage
        done = self.state.step - self.state.stage_start
        # Steps skipped since the last log are known on the device alone.
        self.work.reach(self.state, self.guard.skipped - self.state.skipped)
        set_learning_rate(self.bare_optimizer, rate_share(stage, done, self.training))
        factor, batches = self.accelerator.num_processes / stage.tokens_per_step, stage.accumulation
        means: list[dict[str, Any]] = [
            self.step.micro_batch(feed.take(), self.work, factor, last=number == batches)
            for number in range(1, batches + 1)
        ]
        self._update({name: sum(part[name] for part in means).double() / len(means) for name in means[0]})
        seconds = self.state.seconds + time.perf_counter() - started
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            attempts=self.state.attempts + 1,
            rows_seen=feed.rows_seen,
            tokens=self.state.tokens + stage.tokens_per_step,
            seconds=seconds,
        )

    def _update(self, means: dict[str, Tensor]) -> None:
        norm = self.step.clip(self.training.clip_norm)
        # The norm is that of all processes already; a loss that is not finite on one of them must stop all.
        loss = self.accelerator.reduce(means.pop("loss"), "sum")
        must_skip = self.guard.judge(norm, loss, *self.step.unclipped_gradients)
        if self.accelerator.scaler is None:
            # A fused AdamW leaves weights, moments and step counts alone where found_inf is 1: no host sync.
            self.bare_optimizer.found_inf = must_skip  # type: ignore[attr-defined]
        means |= self.work.take_slope(self.accelerator.scaler)
        self.optimizer.step()
        self.step.forget_gradients()
        figures = {**means, "gradient_norm": norm.double(), "clip_rate": (norm > self.training.clip_norm).double()}
        self._interval.add(figures, must_skip)

    def _log(self, progress: ProgressLine) -> None:
        started = time.perf_counter()
        reading = self.guard.read()
        # The device is done only now: steps that were merely asked for took no time yet.
        self.state = replace(self.state, seconds=self.state.seconds + time.perf_counter() - started)
        newly_skipped = reading.skipped - self.state.skipped
        # A skipped step is not a step done: the budget and the schedule move back by it.
        self.state = replace(self.state, step=self.state.step - newly_skipped, skipped=reading.skipped)
        figures = self._interval.means(self.accelerator, newly_skipped)
        if "cross_entropy_nats" in figures:
            figures["perplexity"] = perplexity_of(figures["cross_entropy_nats"])
        seconds = max(self.state.seconds - self._logged_seconds, 1e-9)
        tokens_per_second = self._interval.steps * self.stage.tokens_per_step / seconds
        # What the next step would meet.
        self.work.reach(self.state)
        present, ids = self.work.figures(), self.material.windows.probe(PROBE_TOKENS).to(self.accelerator.device)
        found = self.step.look(probe_spikes, self.material.student, ids)
        density = sum(figures["density"] for figures in found.values()) / max(len(found), 1)
        self._memory_samples.append(memory_bytes(self.accelerator.device))
        scaler = self.accelerator.scaler
        self._append_metrics(
            stage=self.stage.name,
            **figures,
            **self.work.conflict(self.accelerator, ids),
            **self.health.interval(self.bare_optimizer, figures),
            **present,
            **learning_rates(self.bare_optimizer),
            scaler_scale=None if scaler is None else scaler.get_scale(),
            tokens=self.state.tokens,
            tokens_per_second=tokens_per_second,
            step_ms=1000.0 * seconds / self._interval.steps,
            memory_bytes=self._memory_samples[-1],
            skipped_steps=self.state.skipped,
            compiled_graphs=compiled_graphs(),
            density=density,
            spikes=site_columns(found),
        )
        progress.step(self.state.step)
        progress.figures(self.state.step, figures, tokens_per_second, density)
        for warning in self._watch.look(present):
            progress.say(warning)
        self._start_interval()
        # A gradient scaler skips steps while it searches for its scale; that is no divergence.
        searching = scaler is not None and scaler.get_scale() >= 1.0
        if reading.must_roll_back and not searching:
            self._roll_back(progress)

    def _append_metrics(self, **values: Any) -> None:
        if self.accelerator.is_main_process:
            self.material.folder.append_metrics(step=self.state.step, **values)
            numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
            self.accelerator.log(numbers, self.state.step)

    def _start_interval(self) -> None:
        self._interval.clear()
        self._logged_seconds = self.state.seconds

    def _roll_back(self, progress: ProgressLine) -> None:
        if self.state.roll_backs >= MOST_ROLL_BACKS:
            raise TrainingDivergedError(
                f"loss or gradient stayed non-finite at step {self.state.step} after {MOST_ROLL_BACKS} roll-backs: "
                "lower training.learning_rate, lengthen training.warmup_steps, or use training.precision=fp32"
            )
        checkpoint = load_checkpoint(self.material.folder.checkpoints / "last")
        self.restore(checkpoint.tensors)
        # The cursor stays where it is: the rows that broke the run are not met again.
        self.state = replace(self.state, step=checkpoint.state.step, roll_backs=self.state.roll_backs + 1)
        self.guard.forget_row()
        if self.accelerator.is_main_process:
            self.material.folder.cut_metrics(self.state.step)
        progress.say(
            f"loss or gradient non-finite several steps in a row: back to step {self.state.step} "
            f"(roll-back {self.state.roll_backs} of {MOST_ROLL_BACKS})"
        )

    def _evaluate(self, progress: ProgressLine) -> float:
        material, rows = self.material, self.training.rows
        self.work.reach(self.state)
        result = self.step.look(student_perplexity, material.student, material.windows, rows)
        perplexity = self._evaluated = result.perplexity
        self.state = self.work.judge(self.state, perplexity, progress.say)
        health = self.health.evaluation(result.loss_nats)
        self._append_metrics(evaluation_perplexity=perplexity, evaluation_loss_nats=result.loss_nats, **health)
        ratio = perplexity / self.material.teacher_perplexity
        progress.say(f"step {self.state.step}: evaluation perplexity {perplexity:,.2f}, {ratio:,.3g}x the teacher's")
        # What is not yet all spikes is no candidate for the best.
        if not (math.isfinite(perplexity) and self.work.complete):
            return perplexity
        if counts_as_better(self.training.early_stopping, self.state.stopping_perplexity, perplexity):
            self.state = replace(self.state, stopping_perplexity=perplexity, stopping_step=self.state.step)
        if self.state.best_perplexity is None or perplexity < self.state.best_perplexity:
            self.state = replace(self.state, best_perplexity=perplexity, best_step=self.state.step)
            self.save("best")
        return perplexity
