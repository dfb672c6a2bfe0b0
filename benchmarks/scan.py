"""The linear scan's backends against a naive autograd loop: correct first, then timed in the same run.

Forward and backward at 8 x 256 x 768 in float32. The baseline forms x = k * v once and indexes `x[:, t]`,
whose backward fills a whole zero tensor for each step. Exit code 1 if any value or gradient is wrong; speed
decides nothing. On a busy machine the baseline, with hundreds of parallel regions, suffers most, which would
flatter every ratio: targets are then not judged.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from asnn_goose.kernels.reference import linear_scan_reference
from asnn_goose.models.recurrence import ScanBackend, linear_scan

BATCH, TIME, WIDTH = 8, 256, 768
# float32 rounds each of 256 steps; a wrong index or sign is off by 1, not by 1e-5.
TOLERANCE = 1e-5
# Above this share of the machine's processors in others' hands, times say more about them than about us.
BUSY_FRACTION = 0.1
TARGETS: dict[ScanBackend, float] = {"torch": 10.0, "numba": 30.0}
Scan = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def naive_scan(k: Tensor, v: Tensor, decay: Tensor, initial_state: Tensor) -> tuple[Tensor, Tensor]:
    """The loop one writes first."""
    x = k * v
    state, states = initial_state, []
    for step in range(x.shape[1]):
        state = decay * state + x[:, step]
        states.append(state)
    return torch.stack(states, dim=1), state


def make_inputs(dtype: torch.dtype) -> list[Tensor]:
    """The same k, v, decay and initial state each time, decays spread over timescales of 1 to 1000 tokens."""
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randint(-1, 2, (BATCH, TIME, WIDTH), generator=generator) for _ in range(2))
    decay = torch.exp(-1 / torch.logspace(0, 3, WIDTH, dtype=torch.float64))
    initial_state = torch.randn(BATCH, WIDTH, generator=generator)
    return [tensor.to(dtype).requires_grad_() for tensor in (k, v, decay.float(), initial_state)]


def run(scan: Scan, inputs: list[Tensor]) -> list[Tensor]:
    """States, final state and all four gradients for fixed incoming gradients."""
    generator = torch.Generator().manual_seed(1)
    outputs = scan(*inputs)
    incoming = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, incoming)]


def largest_error(scan: Scan, expected: list[Tensor]) -> float:
    """The largest deviation from float64, relative to the largest entry of the same tensor."""
    found = run(scan, make_inputs(torch.float32))
    return max(
        float((value.detach().double() - truth.detach()).abs().max() / truth.detach().abs().max())
        for value, truth in zip(found, expected, strict=True)
    )


def median_ms(scans: dict[str, Scan], repeats: int) -> dict[str, float]:
    """Median time of one forward and backward of each, after a warm-up, the scans taking turns."""
    inputs = make_inputs(torch.float32)
    incoming = [torch.randn(BATCH, TIME, WIDTH), torch.randn(BATCH, WIDTH)]
    times: dict[str, list[float]] = {name: [] for name in scans}
    for _ in range(repeats + 1):
        for name, scan in scans.items():
            start = time.perf_counter()
            torch.autograd.grad(scan(*inputs), inputs, incoming)
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def machine() -> str:
    """The CPU model and the number of threads in use."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} threads"


def judge(reached: bool, busy_fraction: float) -> str:
    """Whether a target was met, if the machine was idle enough to tell."""
    if busy_fraction > BUSY_FRACTION:
        return f"not judged: machine {busy_fraction:.0%} busy"
    return "met" if reached else "missed"


def main() -> int:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each backend after one warm-up")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    expected = run(lambda *inputs: linear_scan_reference(*inputs, None), make_inputs(torch.float64))
    scans: dict[str, Scan] = {"naive loop": naive_scan}
    for backend in TARGETS:
        scans[backend] = lambda *inputs, backend=backend: linear_scan(*inputs, backend=backend)
    errors = {name: largest_error(scan, expected) for name, scan in scans.items()}
    table = Table(title=f"linear scan, forward + backward, {BATCH} x {TIME} x {WIDTH} float32, {machine()}")
    for column in ("backend", "median ms", "times faster", "target", "largest relative error"):
        table.add_column(column, justify="left" if column == "backend" else "right", overflow="fold")
    busy_fraction = psutil.cpu_percent(interval=1) / 100
    times = median_ms(scans, options.repeats)
    for name, elapsed in times.items():
        ratio, target = times["naive loop"] / elapsed, TARGETS.get(name)
        verdict = "" if target is None else f"{target:.0f}x {judge(ratio >= target, busy_fraction)}"
        table.add_row(name, f"{elapsed:.2f}", f"{ratio:.1f}", verdict, f"{errors[name]:.1e}")
    Console().print(table)
    wrong = [name for name, error in errors.items() if not error <= TOLERANCE]
    if wrong:
        print(f"wrong: {', '.join(wrong)} differ from float64 by more than {TOLERANCE}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
