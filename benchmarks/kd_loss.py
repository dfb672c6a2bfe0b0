"""The chunked distillation loss against the dense one: equal first, then time and peak memory.

2,048 tokens x 49,152 vocabulary, widths 160 (student) and 576 (teacher), float32. Memory is measured in one
child process per loss: its largest resident size after one forward and backward, less its resident size just
before, with inputs made and libraries warm. Children are started before this process makes any tensor, since
on Linux a child's largest size can begin at its parent's. Exit code 1 if value or gradients differ.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.table import Table
from torch import Tensor

from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.kernels.kd_loss import distillation_sums

TOKENS, VOCABULARY, STUDENT_WIDTH, TEACHER_WIDTH = 2048, 49152, 160, 576
TEMPERATURE, KL_WEIGHT, CROSS_ENTROPY_WEIGHT = 2.0, 1.0, 0.0
# Two float32 summation orders over 49,152 words differ by about 1e-6; a wrong term shows at 1e-2.
TOLERANCE = 1e-5
# Logits with a spread of a few nats, as a trained model's have.
HEAD_SCALE = 0.2
MEMORY_TARGET = 1 / 4
# Above this share of the machine's processors in others' hands, times say more about them than about us.
BUSY_FRACTION = 0.1
Loss = Callable[..., Tensor]


def make_inputs(tokens: int, vocabulary: int) -> list[Tensor]:
    """Student hidden states and head (both with gradient), teacher hidden states and head, labels."""
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (tokens, STUDENT_WIDTH),
        (vocabulary, STUDENT_WIDTH),
        (tokens, TEACHER_WIDTH),
        (vocabulary, TEACHER_WIDTH),
    ]
    student, student_head, teacher, teacher_head = (torch.randn(shape, generator=generator) for shape in shapes)
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    for head in (student_head, teacher_head):
        head.mul_(HEAD_SCALE)
    return [student.requires_grad_(), student_head.requires_grad_(), teacher, teacher_head, labels]


def dense_loss(student: Tensor, student_head: Tensor, teacher: Tensor, teacher_head: Tensor, labels: Tensor) -> Tensor:
    """The loss one writes first: all logits at once."""
    logits = student @ student_head.T
    log_student = F.log_softmax(logits / TEMPERATURE, dim=-1)
    log_teacher = F.log_softmax(teacher @ teacher_head.T / TEMPERATURE, dim=-1)
    loss = KL_WEIGHT * TEMPERATURE**2 * F.kl_div(log_student, log_teacher, log_target=True, reduction="sum")
    if CROSS_ENTROPY_WEIGHT:
        loss = loss + CROSS_ENTROPY_WEIGHT * F.cross_entropy(logits, labels, reduction="sum")
    return loss


def chunked_loss(chunk_tokens: int) -> Loss:
    """The package's loss at one chunk size; like the dense loss it leaves an unweighted cross entropy out."""

    def loss(student: Tensor, student_head: Tensor, teacher: Tensor, teacher_head: Tensor, labels: Tensor) -> Tensor:
        valid = torch.ones_like(labels, dtype=torch.bool)
        scored = labels if CROSS_ENTROPY_WEIGHT else torch.full_like(labels, -100)
        heads = LinearHead(student_head), LinearHead(teacher_head)
        weights = TEMPERATURE, KL_WEIGHT, CROSS_ENTROPY_WEIGHT
        return distillation_sums(student, heads[0], teacher, heads[1], scored, valid, *weights, chunk_tokens).loss

    return loss


def run(loss: Loss, inputs: list[Tensor]) -> list[Tensor]:
    """The loss and the gradients of the student's hidden states and head."""
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs[:2])]


def peak_bytes(loss: Loss) -> int:
    """How far one forward and backward raises this process's resident memory."""
    run(loss, make_inputs(8, 512))
    inputs = make_inputs(TOKENS, VOCABULARY)
    before = psutil.Process().memory_info().rss
    run(loss, inputs)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before


def peak_bytes_in_child(name: str, options: argparse.Namespace) -> int:
    """`peak_bytes` in a process of its own, whose highest resident size belongs to this loss alone."""
    arguments = ["--measure", name, "--threads", str(options.threads), "--chunk-tokens", str(options.chunk_tokens)]
    child = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    return int(child.stdout)


def median_seconds(losses: dict[str, Loss], inputs: list[Tensor], repeats: int) -> dict[str, float]:
    """Median time of each, the losses taking turns so that a busy machine slows both."""
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(repeats):
        for name, loss in losses.items():
            start = time.perf_counter()
            run(loss, inputs)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> str:
    """The CPU model and the number of threads in use."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} threads"


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each loss after one that is checked")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--chunk-tokens", type=int, default=128, help="tokens per chunk")
    parser.add_argument("--measure", choices=["dense", "chunked"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Check, time, measure, print."""
    options = read_options()
    torch.set_num_threads(options.threads)
    losses = {"dense": dense_loss, "chunked": chunked_loss(options.chunk_tokens)}
    if options.measure:
        print(peak_bytes(losses[options.measure]))
        return 0
    memory = {name: peak_bytes_in_child(name, options) for name in losses}
    inputs = make_inputs(TOKENS, VOCABULARY)
    expected, found = (run(loss, inputs) for loss in losses.values())
    error = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True))
    del expected, found
    busy_fraction = psutil.cpu_percent(interval=1) / 100
    seconds = median_seconds(losses, inputs, options.repeats)
    table = Table(
        title=f"distillation loss, {TOKENS} x {VOCABULARY} float32, chunk {options.chunk_tokens}, {machine()}"
    )
    for column in ("loss", "median s", "time ratio", "peak MB", "memory ratio"):
        table.add_column(column, justify="left" if column == "loss" else "right")
    ratios = seconds["chunked"] / seconds["dense"], memory["chunked"] / memory["dense"]
    speed = "met" if ratios[0] <= 1 else "missed"
    if busy_fraction > BUSY_FRACTION:
        speed = f"not judged: machine {busy_fraction:.0%} busy"
    verdicts = speed, "met" if ratios[1] <= MEMORY_TARGET else "missed"
    table.add_row("dense", f"{seconds['dense']:.2f}", "1", f"{memory['dense'] / 1e6:.0f}", "1")
    cells = f"{ratios[0]:.2f} (<= 1 {verdicts[0]})", f"{ratios[1]:.3f} (<= {MEMORY_TARGET} {verdicts[1]})"
    table.add_row("chunked", f"{seconds['chunked']:.2f}", cells[0], f"{memory['chunked'] / 1e6:.0f}", cells[1])
    Console().print(table)
    print(f"largest difference of loss and gradients, relative: {error:.1e} (at most {TOLERANCE})")
    return 0 if error <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
