"""How fast a student trains: whole steps as the training loop takes them, and their parts alone, on random weights.

The forms go from torch alone, step by step, to everything that is fast: this package's kernels, compiled blocks, and
micro-batches replayed as CUDA graphs. Each is checked first: its loss on one batch against that of the float32 step;
gradients are held by tests, for in bfloat16 random weights of 30 layers have chaotic ones. Then all are timed in the
same run; the ratio is to torch alone. Launched by torchrun, `--batch` is that of each process and all of them are
timed together. Weights are random, since speed does not depend on them. `goose` converts a model
of SmolLM2-135M's shape into one of the same size; `wkv` is v14.3, 74M taught by GPT-2. Exit code 1 if a loss is off;
speed decides nothing.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from asnn_goose.config import Recipe
from asnn_goose.data.batches import BatchPlan
from asnn_goose.data.feed import BatchFeed
from asnn_goose.data.tokens import TokenRows
from asnn_goose.kernels.kd_loss import distillation_sums
from asnn_goose.models import joint_linear
from asnn_goose.models.build import build_student
from asnn_goose.models.loading import LoadedModel, load_causal_lm
from asnn_goose.models.teacher import make_teacher
from asnn_goose.spikes import encoder
from asnn_goose.training import step as step_module
from asnn_goose.training.distributed import ProcessStep, join_processes, main_console, process_count
from asnn_goose.training.guards import NonFiniteGuard
from asnn_goose.training.prepare import replaced_blocks
from asnn_goose.training.sharding import shard_student
from asnn_goose.training.stages import plan_stages
from asnn_goose.training.work import RunMaterial, build_work
from step_profile import profile

# On an H200 bfloat16 was off by 3.5e-4 with 30 layers.
TOLERANCE = 5e-3
# A block of steps is timed at once: the loop does not wait for the device after each.
STEPS = 5
SHAPES = {
    "goose": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
              "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True},
    "wkv": {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_head": 12},
}  # fmt: skip
STUDENTS: dict[str, dict[str, Any]] = {
    "goose": {
        "student": {"mixer": "goose"}, "spikes": {"amplitude": "none", "scale": "token"},
        "objective": {"temperature": {"kind": "fixed", "value": 1.0}},
    },
    "wkv": {
        "student": {"mixer": "wkv"}, "spikes": {"amplitude": "scalar"},
        "objective": {"temperature": {"kind": "fixed", "value": 2.0}, "cross_entropy_weight": 0.5},
    },
}  # fmt: skip


class Form(NamedTuple):
    """One way to run a step."""

    name: str
    kernels: bool
    compiled: bool
    replayed: bool


FORMS = (
    Form("torch alone", False, False, False),
    Form("kernels", True, False, False),
    Form("kernels, compiled", True, True, False),
    Form("kernels, compiled, replayed", True, True, True),
)


class Bench:
    """Everything of a run but its text and its folder, in one form."""

    def __init__(self, form: Form, options: argparse.Namespace) -> None:
        cuda = torch.cuda.is_available()
        self.accelerator = Accelerator(mixed_precision="bf16" if cuda else "no")
        self.device, self.options = self.accelerator.device, options
        recipe = recipe_of(form, options)
        teacher = make_teacher(random_teacher(options, self.device), form.compiled)
        student = build_student(recipe.student, recipe.spikes, teacher, 0).to(self.device)
        self.student = student
        sharded = shard_student(student, self.accelerator) if options.fsdp2 else None
        material = RunMaterial(teacher, student, None, (), None, 1.0, sharded)  # type: ignore[arg-type]
        tokens = np.random.default_rng(0).integers(0, len(teacher.head.weight), 200 * options.window, dtype=np.uint16)
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        rows = BatchPlan(TokenRows(tokens, options.window, options.window), options.batch, 0, processes, rank)
        plan = plan_stages(recipe, processes)[0]
        self.work = build_work(plan, recipe, material, replaced_blocks(recipe, teacher), rows)
        self.step = ProcessStep(
            self.accelerator, self.work.module, self.work.optimizer, material.sharded, form.replayed and cuda
        )
        self.feed = BatchFeed(rows, 0, self.device)
        self.guard = NonFiniteGuard(self.device)
        self.tokens = plan.tokens_per_step
        self.ids = rows.batch(0).to(self.device)

    def loss(self, exact: bool = False) -> float:
        """Nats per token on one batch; `exact` in float32."""
        seen = self.work.observe(self.ids)

        def nats() -> float:
            record = self.work.module(self.ids, seen)
            return float(record.loss) / int(record.tokens)

        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=not exact and on_gpu()):
            return self.step.look(nats)

    def take(self) -> None:
        """One step as the loop takes it."""
        factor = self.accelerator.num_processes / self.tokens
        means = self.step.micro_batch(self.feed.take(), self.work, factor, last=True)
        norm = self.step.clip(1.0)
        self.work.optimizer.found_inf = self.guard.judge(norm, means["loss"])  # type: ignore[attr-defined]
        self.step.optimizer.step()
        self.step.forget_gradients()

    def steps(self) -> None:
        """A block of steps."""
        for _ in range(STEPS):
            self.take()

    def body(self) -> None:
        """The student's body forward and backward, no loss."""
        with self.accelerator.autocast():
            self.student.model(input_ids=self.ids).last_hidden_state.float().sum().backward()
        self.step.optimizer.zero_grad(set_to_none=True)

    def update(self) -> None:
        """Clipping and the optimizer alone, on the gradients that are there."""
        self.step.clip(1.0)
        self.step.optimizer.step()

    def parts(self, repeats: int) -> dict[str, float]:
        """Milliseconds of the teacher, the student's body, body and loss, and the update."""
        observed = self.work.observe(self.ids)
        found = {
            "teacher": median_ms(partial(self.work.observe, self.ids), repeats),
            "body": median_ms(self.body, repeats),
            "body + loss": median_ms(partial(self.step._learn, 1.0, self.ids, observed), repeats),
            "update": median_ms(self.update, repeats),
        }
        self.step.optimizer.zero_grad(set_to_none=True)
        return found


def recipe_of(form: Form, options: argparse.Namespace) -> Recipe:
    """A recipe that trains so; its text is never read."""
    parts = STUDENTS[options.student]
    student = {**parts["student"], "backend": "auto" if form.kernels else "torch"}
    alignment = {"hidden_alignment": {"weight": 2.0}} if options.hidden_alignment else {}
    return Recipe.model_validate(
        {
            "teacher": {"name": "random", "compile": form.compiled, "hidden_cache": options.hidden_cache},
            "data": {"name": "pydoc"},
            "student": student,
            "spikes": parts["spikes"],
            "objective": {**parts["objective"], **alignment, "chunk_tokens": options.chunk_tokens},
            "training": {
                "steps": 1000, "batch_size": options.batch, "window": options.window, "compile": form.compiled,
                "activation_checkpointing": options.activation_checkpointing, "learning_rate": 1e-9,
            },
        }
    )  # fmt: skip


def random_teacher(options: argparse.Namespace, device: torch.device) -> LoadedModel:
    """A teacher with random weights, as loaded."""
    torch.manual_seed(0)
    layers, shape = options.layers, SHAPES[options.student]
    with device:
        model = (
            LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers or 30, **shape))
            if options.student == "goose"
            else GPT2LMHeadModel(GPT2Config(n_layer=layers or 12, **shape))
        )
    model = model.to(device, torch.bfloat16 if on_gpu() else torch.float32).eval().requires_grad_(False)
    return LoadedModel(model, load_causal_lm("pocket", torch.float32).tokenizer, "random", "")


@contextmanager
def torch_alone(form: Form) -> Iterator[None]:
    """Within it a form without kernels has no encoder and no loss of this package's own."""
    if form.kernels:
        yield
        return
    with (
        mock.patch.dict(encoder.LEAST_WORTHWHILE, clear=True),
        mock.patch.dict(joint_linear.LEAST_TOKENS, clear=True),
        mock.patch.object(step_module, "distillation_sums", partial(distillation_sums, backend="torch")),
    ):
        yield


def median_ms(action: Callable[[], object], repeats: int, warm_ups: int = 2) -> float:
    """Median time after warm-ups."""
    times = []
    for _ in range(repeats + warm_ups):
        wait()
        start = time.perf_counter()
        action()
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[warm_ups:])


def on_gpu() -> bool:
    """Whether there is one."""
    return torch.cuda.is_available()


def wait() -> None:
    """Let the device finish."""
    if on_gpu():
        torch.cuda.synchronize()


def parse_arguments() -> argparse.Namespace:
    """Sizes; the defaults are small enough for a CPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", choices=tuple(STUDENTS), default="goose", help="what is trained")
    parser.add_argument("--batch", type=int, default=2, help="rows")
    parser.add_argument("--window", type=int, default=256, help="tokens of a row")
    parser.add_argument("--layers", type=int, default=None, help="layers of the teacher; SmolLM2-135M has 30, GPT-2 12")
    parser.add_argument("--chunk-tokens", type=int, default=4096, help="tokens whose logits exist at one time")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs after warm-ups")
    parser.add_argument("--forms", type=int, nargs="*", default=range(len(FORMS)), help="forms, by number from 0")
    parser.add_argument("--hidden-alignment", action="store_true", help="also compare hidden states block by block")
    parser.add_argument("--hidden-cache", action="store_true", help="keep the teacher's hidden states: 200 rows recur")
    parser.add_argument("--activation-checkpointing", action="store_true", help="compute blocks again in the backward")
    parser.add_argument("--fsdp2", action="store_true", help="processes share the student's weights and moments")
    parser.add_argument("--parts", action="store_true", help="also time the parts of a step alone")
    parser.add_argument("--profile", type=int, default=0, help="print so many of the last form's costliest kernels")
    return parser.parse_args()


def main() -> int:
    """Check, time, print."""
    options = parse_arguments()
    join_processes()
    console = main_console(Console(width=140))
    name = torch.cuda.get_device_name() if on_gpu() else f"CPU, {torch.get_num_threads()} threads"
    name = name if process_count() == 1 else f"{process_count()} x {name}"
    table = Table(title=f"a step of {options.batch} x {options.window}, {options.student} student, {name}")
    parts = ("teacher", "body", "body + loss", "update") if options.parts and not options.fsdp2 else ()
    for column in ("form", *parts, "step, ms", "tokens/s", "times faster", "peak GB", "loss off by"):
        table.add_column(column, justify="left" if column == "form" else "right")
    expected, slowest, worst = 0.0, 0.0, 0.0
    for form in (FORMS[number] for number in options.forms):
        if options.fsdp2 and form.replayed:
            continue
        start = time.perf_counter()
        with torch_alone(form):
            bench = Bench(form, options)
            expected = expected or bench.loss(exact=True)
            off = abs(bench.loss() - expected) / expected
            cells = [f"{ms:.1f}" for ms in bench.parts(options.repeats).values()] if parts else []
            step_ms = median_ms(bench.steps, options.repeats, warm_ups=3) / STEPS
            peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu() else 0.0
        slowest, worst = slowest or step_ms, max(worst, off)
        speed = f"{bench.tokens / step_ms * 1e3:,.0f}"
        table.add_row(
            form.name, *cells, f"{step_ms:.1f}", speed, f"{slowest / step_ms:.2f}", f"{peak:.1f}", f"{off:.1e}"
        )
        spent = time.perf_counter() - start
        console.print(f"{form.name}: {step_ms:.1f} ms, {speed} tokens/s, off by {off:.1e} ({spent:.0f} s in all)")
        if options.profile and form is FORMS[list(options.forms)[-1]]:
            console.print(*profile(bench.take, options.profile), sep="\n")
        del bench
        gc.collect()
        if on_gpu():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    console.print(table)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
