"""The distillation loss on a GPU against the dense one: equal to float64 first, then time and memory.

16,384 tokens x 49,152 vocabulary, width 576, bfloat16 products: the dense loss, the chunked loss in torch and the
chunked loss with its Triton kernel take turns in one run. Memory is what one forward and backward adds at its peak.
Exit code 1 if a value or gradient is off.
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.table import Table
from torch import Tensor

from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.kernels.kd_loss import LossBackend, distillation_sums

WIDTH, CHECKED_TOKENS = 576, 2048
TEMPERATURE, DIVERGENCE_WEIGHT, CROSS_ENTROPY_WEIGHT = 2.0, 1.0, 0.5
HEAD_SCALE = 0.2
# A gradient at the logits is rounded to bfloat16, 8 bits, before it is summed over 49,152 words or 2,048 tokens.
TOLERANCE = 1e-2
MEMORY_TARGET_GB, SPEED_TARGET = 1.5, 2.0
Loss = Callable[..., Tensor]


def make_inputs(tokens: int, vocabulary: int) -> list[Tensor]:
    """Student hidden states and head (both with gradient), teacher hidden states and head, labels."""
    torch.manual_seed(0)
    student, teacher = (torch.randn(tokens, WIDTH, device="cuda") for _ in range(2))
    heads = [torch.randn(vocabulary, WIDTH, device="cuda") * HEAD_SCALE for _ in range(2)]
    labels = torch.randint(0, vocabulary, (tokens,), device="cuda")
    return [student.requires_grad_(), heads[0].requires_grad_(), teacher, heads[1], labels]


def dense_loss(dtype: torch.dtype) -> Loss:
    """The loss one writes first: products in `dtype`, all logits at once in float32 (float64 for float64)."""
    wide = torch.promote_types(dtype, torch.float32)

    def loss(student: Tensor, student_head: Tensor, teacher: Tensor, teacher_head: Tensor, labels: Tensor) -> Tensor:
        logits = (student.to(dtype) @ student_head.to(dtype).T).to(wide)
        with torch.no_grad():
            wanted = (teacher.to(dtype) @ teacher_head.to(dtype).T).to(wide) / TEMPERATURE
        log_student = F.log_softmax(logits / TEMPERATURE, dim=-1)
        divergence = F.kl_div(log_student, F.log_softmax(wanted, dim=-1), log_target=True, reduction="sum")
        cross_entropy = F.cross_entropy(logits, labels, reduction="sum")
        return DIVERGENCE_WEIGHT * TEMPERATURE**2 * divergence + CROSS_ENTROPY_WEIGHT * cross_entropy

    return loss


def chunked_loss(backend: LossBackend, chunk_tokens: int) -> Loss:
    """The package's loss."""

    def loss(student: Tensor, student_head: Tensor, teacher: Tensor, teacher_head: Tensor, labels: Tensor) -> Tensor:
        return distillation_sums(
            student, LinearHead(student_head), teacher, LinearHead(teacher_head), labels,
            torch.ones_like(labels, dtype=torch.bool), TEMPERATURE, DIVERGENCE_WEIGHT, CROSS_ENTROPY_WEIGHT,
            chunk_tokens, torch.bfloat16, backend=backend,
        ).loss  # fmt: skip

    return loss


def run(loss: Loss, inputs: list[Tensor]) -> list[Tensor]:
    """The loss and the gradients of the student's hidden states and head."""
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs[:2])]


def largest_error(loss: Loss, inputs: list[Tensor]) -> float:
    """Relative to the norms of the float64 loss and gradients of the same rounded operands."""
    rounded = [part.detach().bfloat16().double() if part.is_floating_point() else part for part in inputs]
    expected = run(dense_loss(torch.float64), [*(part.requires_grad_() for part in rounded[:2]), *rounded[2:]])
    found = run(loss, inputs)
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def measure(losses: dict[str, Loss], inputs: list[Tensor], repeats: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds, the losses taking turns after two warm-ups each, and gigabytes added at the peak."""
    times: dict[str, list[float]] = {name: [] for name in losses}
    peaks = {}
    for turn in range(repeats + 2):
        for name, loss in losses.items():
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run(loss, inputs)
            end.record()
            torch.cuda.synchronize()
            peaks[name] = (torch.cuda.max_memory_allocated() - before) / 1e9
            if turn >= 2:
                times[name].append(start.elapsed_time(end))
    return {name: (statistics.median(values), peaks[name]) for name, values in times.items()}


def main() -> int:
    """Check, time, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--chunk-tokens", type=int, default=2048, help="tokens whose logits exist at one time")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each loss after two warm-ups")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: no GPU here; benchmarks/kd_loss.py measures the loss on a CPU")
        return 2
    chunked = {f"chunked, {name}": chunked_loss(name, options.chunk_tokens) for name in ("torch", "triton")}
    checked = make_inputs(CHECKED_TOKENS, options.vocabulary)
    errors = {name: largest_error(loss, checked) for name, loss in chunked.items()}
    del checked
    found = measure(
        {"dense": dense_loss(torch.bfloat16), **chunked},
        make_inputs(options.tokens, options.vocabulary),
        options.repeats,
    )
    table = Table(
        title=f"distillation loss, {options.tokens:,} x {options.vocabulary:,}, width {WIDTH}, chunk "
        f"{options.chunk_tokens:,}, {torch.cuda.get_device_name()}"
    )
    for column in ("loss", "ms", "times faster", "GB more at the peak", "largest error"):
        table.add_column(column, justify="left" if column == "loss" else "right")
    for name, (elapsed, peak) in found.items():
        ratio = found["dense"][0] / elapsed
        table.add_row(name, f"{elapsed:.2f}", f"{ratio:.2f}", f"{peak:.2f}", f"{errors.get(name, 0):.1e}")
    Console(width=120).print(table)
    elapsed, peak = found["chunked, triton"]
    fast = "met" if found["dense"][0] / elapsed >= SPEED_TARGET else "missed"
    small = "met" if peak <= MEMORY_TARGET_GB else "missed"
    print(f"wanted: {SPEED_TARGET}x faster ({fast}), at most {MEMORY_TARGET_GB} GB more ({small})")
    return 0 if max(errors.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
