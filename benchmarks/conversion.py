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

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from asnn_goose.config_student import GooseStudent, Spikes
from asnn_goose.config_training import FixedTemperature, Objective
from asnn_goose.models.block import run_block
from asnn_goose.models.build import build_student
from asnn_goose.models.loading import load_causal_lm
from asnn_goose.models.teacher import Teacher, body_hidden_states, compile_or_fall_back, output_head
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
    return parser.parse_args()


def main() -> int:
    """Check, time, print."""
    options = parse_arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    teacher = random_teacher(device, options.layers, dtype)
    student = build_student(GooseStudent(mixer="goose"), Spikes(amplitude="none", scale="token"), teacher, 0).to(device)
    objective = Objective(temperature=FixedTemperature(value=1.0), chunk_tokens=options.chunk_tokens)
    step = DistillationStep(student, teacher.head, objective)
    optimizer = torch.optim.AdamW(step.parameters(), lr=0.0, fused=True)
    ids = torch.randint(0, 49152, (options.batch, options.window), device=device)
    compiled_body = compile_or_fall_back(teacher.model.base_model, "teacher", dynamic=False)

    def hidden(body: Callable[..., object], ids: Tensor) -> Tensor:
        with torch.inference_mode():
            return body_hidden_states(body, ids)

    forms: dict[str, tuple[Callable[[Tensor], Tensor], Callable[..., tuple[Tensor, dict[str, Tensor]]]]] = {
        "as written": (partial(hidden, teacher.model.base_model), run_block),
        "compiled": (partial(hidden, compiled_body), compile_or_fall_back(run_block, "student", dynamic=False)),
    }
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    table = Table(title=f"conversion step, {options.batch} x {options.window}, {options.layers} layers, {name}")
    for column in (
        "form",
        "teacher ms",
        "forward + backward ms",
        "whole step ms",
        "tokens/s",
        "loss",
        "gradient error",
    ):
        table.add_column(column, justify="left" if column == "form" else "right")
    seen = hidden(teacher.model.base_model, ids)
    expected_loss = float(one_step(step, lambda _: seen, ids, torch.float32))
    step.zero_grad(set_to_none=True)
    worst = 0.0
    for form, (teacher_hidden, runner) in forms.items():
        student.model.block_runner = runner
        start = time.perf_counter()
        loss = float(one_step(step, teacher_hidden, ids, dtype))
        off = abs(loss - expected_loss) / expected_loss
        worst = max(worst, off)
        print(f"{form}: first step {time.perf_counter() - start:.1f} s, loss off by {off:.1e}", flush=True)

        def whole(teacher_hidden: Callable[[Tensor], Tensor] = teacher_hidden) -> None:
            one_step(step, teacher_hidden, ids, dtype)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        seen = teacher_hidden(ids)
        alone = median_ms(partial(teacher_hidden, ids), options.repeats)
        both = median_ms(partial(one_step, step, lambda _, seen=seen: seen, ids, dtype), options.repeats)
        elapsed = median_ms(whole, options.repeats)
        speed = ids.numel() / elapsed * 1e3
        table.add_row(
            form, f"{alone:.1f}", f"{both:.1f}", f"{elapsed:.1f}", f"{speed:,.0f}",
            f"{loss:.4f}", f"{off:.1e}",
        )  # fmt: skip
        print(
            f"{form}: teacher {alone:.1f} ms, fwd+bwd {both:.1f} ms, step {elapsed:.1f} ms, {speed:,.0f} tok/s",
            flush=True,
        )
    Console().print(table)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
