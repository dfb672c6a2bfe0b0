"""The spike encoder in torch, compiled torch and Triton: correct against float64 first, then timed in the same run.

24,576 tokens of 192, 576 and 1536 channels in bfloat16 and float32, with and without an RMS norm in front. Times are
medians between CUDA events, each run behind a write that empties the GPU's cache and lasts longer than Python needs to
start the run's kernels: they are the GPU's own. The last table counts Python too, since it decides from which size on
the encoder should choose Triton. On a CPU, Triton's interpreter checks a few tokens and nothing is timed. Exit code 1
if a form is wrong; speed decides nothing.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from asnn_goose.spikes import encoder
from asnn_goose.spikes.encoder import THRESHOLD_RANGE, SpikeEncoder
from gpu_timing import gpu_us

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
from asnn_goose.kernels.encoder_triton import Normalization, encode_normalized_triton, encode_triton

TOKENS, WIDTHS = 24_576, (192, 576, 1536)
DTYPES = (torch.bfloat16, torch.float32)
ALPHA, LEVELS, LIMIT, EPS = 1.0, 1, 1.5, 1e-5
# The share of spikes at an edge that float32 sums move; a wrong threshold moves a percent of them.
MOST_DIFFERING = 1e-5
# One gradient of a million, let through or cut off by rounding, is 1e-3 of their norm; bfloat16 rounds to 2e-3.
GRADIENT_TOLERANCE = 5e-3
SWEPT_WIDTH, SWEPT = 192, [2**power for power in range(13, 24)]
# Without an amplitude an encoder has no weights and takes any width.
ENCODER = SpikeEncoder(1, LEVELS, ALPHA, amplitude="none")
Form = Callable[[Tensor, Tensor | None], Tensor]


def torch_form(x: Tensor, weight: Tensor | None) -> Tensor:
    """The encoder as the package writes it in torch, while `main` keeps it from choosing a kernel."""
    spikes: Tensor = ENCODER(x if weight is None else functional.rms_norm(x, weight.shape, weight, EPS)).values
    return spikes


def triton_form(x: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The kernel, with spikes in the given dtype."""
    if weight is None:
        return encode_triton(x, ALPHA, THRESHOLD_RANGE, LEVELS, LIMIT, 1.0, dtype)[0]
    norm = Normalization("rms", weight, None, EPS)
    return encode_normalized_triton(x, norm, ALPHA, THRESHOLD_RANGE, LEVELS, LIMIT, 1.0, dtype)[0]


def make_inputs(tokens: int, width: int, dtype: torch.dtype, normed: bool, device: str) -> list[Tensor]:
    """Random activations, and the weight of a norm in float32 where there is one."""
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(tokens, width, generator=generator, device=device).to(dtype)
    weight = 1.0 + 0.2 * torch.randn(width, generator=generator, device=device)
    return [part.requires_grad_() for part in ((x, weight) if normed else (x,))]


def run(form: Form, inputs: list[Tensor]) -> list[Tensor]:
    """Spikes and all gradients for the same incoming gradients each time."""
    values = form(inputs[0], inputs[1] if len(inputs) > 1 else None)
    incoming = torch.sin(torch.arange(values.numel(), device=values.device, dtype=torch.float64)).view(values.shape)
    return [values.detach(), *torch.autograd.grad(values, inputs, incoming.to(torch.bfloat16).to(values))]


def errors(tokens: int, width: int, dtype: torch.dtype, normed: bool, device: str) -> tuple[float, float]:
    """The share of spikes that are not those of float64, and the largest error of a gradient relative to its norm."""
    inputs = make_inputs(tokens, width, dtype, normed, device)
    found = run(partial(triton_form, dtype=torch.float32), inputs)
    expected = run(torch_form, [part.detach().double().requires_grad_() for part in inputs])
    differing = (found[0] != expected[0]).double().mean()
    gradients = zip(found[1:], expected[1:], strict=True)
    return float(differing), max(float((one.double() - true).norm() / true.norm()) for one, true in gradients)


def wall_us(work: Callable[[], object], repeats: int) -> float:
    """Time of one of many calls in a row, in microseconds: of Python or of the GPU, whichever takes longer."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats * 1e6


def works(form: Form, inputs: list[Tensor]) -> tuple[Callable[[], object], Callable[[], object]]:
    """The forward without a graph, and forward and backward."""
    given = inputs[0], inputs[1] if len(inputs) > 1 else None
    incoming = torch.randn_like(form(*given), dtype=torch.float32)

    @torch.no_grad()
    def forward() -> object:
        return form(*given)

    def both() -> object:
        values = form(*given)
        return torch.autograd.grad(values, inputs, incoming.to(values.dtype))

    return forward, both


def add_rows(table: Table, width: int, dtype: torch.dtype, normed: bool, repeats: int, compiled: bool) -> None:
    """Time every form at one size; a ratio is to eager torch, bandwidth counts what has to be moved at least."""
    inputs = make_inputs(TOKENS, width, dtype, normed, "cuda")
    forms: dict[str, tuple[Form, torch.dtype]] = {"torch": (torch_form, torch.float32)}
    if compiled:
        torch.compiler.reset()
        forms["torch, compiled"] = torch.compile(torch_form, dynamic=False), torch.float32
    for out in dict.fromkeys((torch.float32, dtype)):
        forms[f"triton, {str(out).removeprefix('torch.')} spikes"] = partial(triton_form, dtype=out), out
    baseline: list[float] = []
    for name, (form, out) in forms.items():
        elapsed = [gpu_us(work, repeats) for work in works(form, inputs)]
        baseline = baseline or elapsed
        one_way = TOKENS * width * (dtype.itemsize + out.itemsize)
        moved = one_way, 2 * one_way + TOKENS * width * dtype.itemsize
        cells = [f"{width} {str(dtype).removeprefix('torch.')}{', rms' if normed else ''}", name]
        for first, taken, count in zip(baseline, elapsed, moved, strict=True):
            cells += [f"{taken:.1f}", f"{first / taken:.2f}", f"{count / taken / 1e6:.2f}"]
        table.add_row(*cells)
        print("  ".join(cells), flush=True)


def print_crossing(repeats: int) -> None:
    """From how many values on the encoder should choose the kernel, Python counted."""
    least = None
    for count in SWEPT:
        inputs = make_inputs(count // SWEPT_WIDTH, SWEPT_WIDTH, torch.bfloat16, False, "cuda")
        times = []
        for threshold in (math.inf, 0):
            with mock.patch.dict(encoder.LEAST_WORTHWHILE, {"cuda": threshold}):
                times.append([wall_us(work, repeats) for work in works(torch_form, inputs)])
        least = (least or count) if all(ours <= theirs for theirs, ours in zip(*times, strict=True)) else None
        (forward, both), (our_forward, our_both) = times
        print(f"{count:>9} values: torch {forward:.0f} / {both:.0f} us, triton {our_forward:.0f} / {our_both:.0f} us")
    print(f"forward / forward + backward, Python counted; triton is faster both ways from {least} values on")


def main() -> int:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30, help="timed runs after three warm-ups")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled torch out, which takes minutes")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    with mock.patch.dict(encoder.LEAST_WORTHWHILE, {"cuda": math.inf, "cpu": math.inf}):
        correct = True
        cases = [(width, dtype, normed) for width in WIDTHS for dtype in DTYPES for normed in (False, True)]
        for width, dtype, normed in cases:
            differing, error = errors(2048 if on_gpu else 5, width, dtype, normed, "cuda" if on_gpu else "cpu")
            correct &= differing <= MOST_DIFFERING and error <= GRADIENT_TOLERANCE
            print(f"{width} {dtype} {'rms' if normed else 'no norm'}: {differing:.1e} differ, gradient {error:.1e}")
        if not on_gpu:
            print("checked in Triton's interpreter; times need an NVIDIA GPU")
        if not correct or not on_gpu:
            return 0 if correct else 1
        table = Table(title=f"spike encoder, {TOKENS} tokens, {torch.cuda.get_device_name()}")
        for column in ("input", "form", "forward us", "faster", "TB/s", "forward + backward us", "faster", "TB/s"):
            table.add_column(column, justify="left" if column in ("input", "form") else "right")
        for case in cases:
            add_rows(table, *case, options.repeats, not options.no_compile)
        Console(width=140).print(table)
        print_crossing(100)
    return 0


if __name__ == "__main__":
    sys.exit(main())
