"""How fast a conversion trains: a whole step on random weights of SmolLM2-135M's shape, and its parts alone.

First each form's loss is checked against that of the float32 step on the same batch; gradients are held by the slow
test of `tests/models/test_block.py`, for in bfloat16 random weights of 30 layers have chaotic ones. Then teacher,
student and loss are timed, compiled and not, in the same run; the ratio is what compiling is worth. Weights are random,
since speed does not depend on them. Exit code 1 if a loss is off; speed decides nothing.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from asnn_goose.config_student import GooseStudent, Spikes
from asnn_goose.config_training import FixedTemperature, Objective
from asnn_goose.kernels.kd_loss import LossBackend, distillation_sums
from asnn_goose.models.block import run_block
from asnn_goose.models.build import build_student
from asnn_goose.models.compiling import compile_or_fall_back
from asnn_goose.models.loading import load_causal_lm
from asnn_goose.models.teacher import Teacher, body_hidden_states, output_head
from asnn_goose.training import step as step_module
from asnn_goose.training.step import DistillationStep, TeacherView

# On an H200 bfloat16 was off by 3.5e-4 with 30 layers.
TOLERANCE = 5e-3


def random_teacher(device: str, layers: int, dtype: torch.dtype) -> Teacher:
    """A Llama of SmolLM2-135M's shape with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device, dtype).eval().requires_grad_(False)
    tokenizer = load_causal_lm("pocket", torch.float32).tokenizer
    return Teacher(model, model.base_model, output_head(model, "random"), tokenizer, "random", "")


def one_step(step: DistillationStep, hidden: Callable[[Tensor], Tensor], ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Forward and backward of one batch; the loss in nats per token."""
    seen = hidden(ids)
    with torch.autocast(ids.device.type, dtype, enabled=dtype != torch.float32):
        record = step(ids, TeacherView(seen))
    loss = record.loss / record.tokens
    loss.backward()
    return loss.detach()


def median_ms(action: Callable[[], object], repeats: int) -> float:
    """Median time after two warm-ups."""
    times = []
    for _ in range(repeats + 2):
        _wait()
        start = time.perf_counter()
        action()
        _wait()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[2:])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def parse_arguments() -> argparse.Namespace:
    """Sizes; the defaults are small enough for a CPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=2, help="rows")
    parser.add_argument("--window", type=int, default=256, help="tokens of a row")
    parser.add_argument("--layers", type=int, default=2, help="layers of teacher and student; SmolLM2-135M has 30")
    parser.add_argument("--chunk-tokens", type=int, default=4096, help="tokens whose logits exist at one time")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs after two warm-ups")
    parser.add_argument(
        "--profile", type=int, default=0, help="print so many of the costliest operations of a fast step"
    )
    return parser.parse_args()


class Form(NamedTuple):
    """One way to run a step: the teacher's body, what runs a block of the student, and what computes the loss."""

    body: Callable[..., object]
    runner: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    backend: LossBackend


class Bench:
    """Models, optimizer and one batch of random tokens."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.teacher = random_teacher(self.device, options.layers, self.dtype)
        spikes = Spikes(amplitude="none", scale="token")
        self.student = build_student(GooseStudent(mixer="goose"), spikes, self.teacher, 0).to(self.device)
        objective = Objective(temperature=FixedTemperature(value=1.0), chunk_tokens=options.chunk_tokens)
        self.step = DistillationStep(self.student, self.teacher.head, objective)
        self.optimizer = torch.optim.AdamW(self.step.parameters(), lr=0.0, fused=True)
        self.ids = torch.randint(0, 49152, (options.batch, options.window), device=self.device)

    def seen(self, body: Callable[..., object]) -> Tensor:
        """The teacher's hidden states."""
        with torch.inference_mode():
            return body_hidden_states(body, self.ids)

    def take(self, form: Form) -> None:
        """Run blocks and loss in this form from now on."""
        self.student.model.block_runner = form.runner
        step_module.distillation_sums = partial(distillation_sums, backend=form.backend)

    def forward_backward(self, hidden: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The loss in nats per token, its gradients left with the weights."""
        return one_step(self.step, lambda _: hidden, self.ids, dtype or self.dtype)

    def body_alone(self) -> None:
        """The student's body forward and backward, no loss."""
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            self.student.model(input_ids=self.ids).last_hidden_state.float().sum().backward()

    def whole(self, form: Form) -> None:
        """Everything of a step but reading the data."""
        self.forward_backward(self.seen(form.body))
        torch.nn.utils.clip_grad_norm_(self.step.parameters(), 1.0)
        self.update()

    def update(self) -> None:
        """The optimizer alone."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def parts(self, form: Form, repeats: int) -> tuple[float, ...]:
        """Milliseconds of teacher, student's body, both with the loss, the update, and a whole step."""
        hidden = self.seen(form.body)
        self.forward_backward(hidden)
        timed = (
            partial(self.seen, form.body),
            self.body_alone,
            partial(self.forward_backward, hidden),
            self.optimizer.step,
            partial(self.whole, form),
        )
        return tuple(median_ms(action, repeats) for action in timed)

    def profile(self, form: Form, rows: int) -> str:
        """The costliest operations of a step, by time on the device."""
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities[: 2 if self.device == "cuda" else 1]) as profiler:
            self.whole(form)
            _wait()
        key = "self_cuda_time_total" if self.device == "cuda" else "self_cpu_time_total"
        table: str = profiler.key_averages().table(sort_by=key, row_limit=rows, max_name_column_width=60)
        return table


def main() -> int:
    """Check, time, print."""
    options = parse_arguments()
    bench = Bench(options)
    eager = Form(bench.teacher.model.base_model, run_block, "torch")
    compiled = Form(
        compile_or_fall_back(bench.teacher.model.base_model, "teacher", dynamic=False),
        compile_or_fall_back(run_block, "student", dynamic=False), "torch",
    )  # fmt: skip
    forms = {"as written": eager, "compiled": compiled}
    if bench.device == "cuda":
        forms["compiled, Triton loss"] = compiled._replace(backend="triton")
    name = torch.cuda.get_device_name() if bench.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    table = Table(title=f"a step of {options.batch} x {options.window}, {options.layers} layers, ms, {name}")
    columns = ("form", "teacher", "body", "body + loss", "update", "whole step", "tokens/s", "times faster", "off by")
    for column in columns:
        table.add_column(column, justify="left" if column == "form" else "right")
    bench.take(eager)
    expected = float(bench.forward_backward(bench.seen(eager.body), torch.float32))
    bench.step.zero_grad(set_to_none=True)
    worst, slowest = 0.0, 0.0
    for label, form in forms.items():
        bench.take(form)
        start = time.perf_counter()
        off = abs(float(bench.forward_backward(bench.seen(form.body))) - expected) / expected
        print(f"{label}: first step {time.perf_counter() - start:.1f} s, loss off by {off:.1e}", flush=True)
        times = bench.parts(form, options.repeats)
        slowest, worst = slowest or times[-1], max(worst, off)
        speed, cells = bench.ids.numel() / times[-1] * 1e3, [f"{part:.1f}" for part in times]
        print(f"{label}: {', '.join(cells)} ms, {speed:,.0f} tokens/s", flush=True)
        table.add_row(label, *cells, f"{speed:,.0f}", f"{slowest / times[-1]:.2f}", f"{off:.1e}")
    Console(width=130).print(table)
    if options.profile:
        print(bench.profile(form, options.profile))
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
