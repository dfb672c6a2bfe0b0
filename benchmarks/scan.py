"""The linear scan's backends against a naive autograd loop: correct first, then timed in the same run.

Forward and backward at 8 x 256 x 768 in float32. The baseline forms x = k * v once and indexes `x[:, t]`,
whose backward fills a whole zero tensor for each step. Exit code 1 if any value or gradient is wrong; speed
decides nothing. On a busy machine the baseline, with hundreds of parallel regions, suffers most, which would
flatter every ratio: targets are then not judged.

On a machine with an NVIDIA GPU the same follows there at 64 x 256 x 768, forward and backward apart, in the GPU's
own time: the torch backend, Triton, and fla's chunk_hgrn where fla is installed.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
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
GPU_BATCH = 64
GPU_TARGETS_US = (60.0, 100.0)
# What has to be moved, in tensors of the size of k: k, v and the states; k, v, the states' gradient and two gradients.
GPU_TENSORS = (3, 5)
WARM_UPS = 10
# Half a millisecond of reading: it empties the cache, and the CPU has launched the work before the GPU comes to it.
LEAD_BYTES = 2**31
Scan = Callable[..., tuple[Tensor, ...]]


def naive_scan(k: Tensor, v: Tensor, decay: Tensor, initial_state: Tensor) -> tuple[Tensor, Tensor]:
    """The loop one writes first."""
    x = k * v
    state, states = initial_state, []
    for step in range(x.shape[1]):
        state = decay * state + x[:, step]
        states.append(state)
    return torch.stack(states, dim=1), state


def make_inputs(dtype: torch.dtype, batch: int = BATCH, device: str = "cpu") -> list[Tensor]:
    """The same k, v, decay and initial state each time, decays spread over timescales of 1 to 1000 tokens."""
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randint(-1, 2, (batch, TIME, WIDTH), generator=generator) for _ in range(2))
    decay = torch.exp(-1 / torch.logspace(0, 3, WIDTH, dtype=torch.float64))
    initial_state = torch.randn(batch, WIDTH, generator=generator)
    return [tensor.to(device, dtype).requires_grad_() for tensor in (k, v, decay.float(), initial_state)]


def run(scan: Scan, inputs: list[Tensor]) -> list[Tensor]:
    """States, final state and all four gradients for fixed incoming gradients."""
    generator = torch.Generator().manual_seed(1)
    outputs = scan(*inputs)
    incoming = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, incoming)]


def largest_error(scan: Scan, expected: list[Tensor], batch: int = BATCH, device: str = "cpu") -> float:
    """The largest deviation from float64, relative to the largest entry of the same tensor."""
    found = run(scan, make_inputs(torch.float32, batch, device))
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


def device_us(prepare: Callable[[], object], work: Callable[..., object], repeats: int) -> float:
    """Median time of `work` on the GPU, after warm-ups and with nothing of its inputs in the cache."""
    lead = torch.empty(LEAD_BYTES, dtype=torch.uint8, device="cuda").view(torch.float32)
    times = []
    for _ in range(WARM_UPS + repeats):
        prepared = prepare()
        lead.sum()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work(prepared)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times[WARM_UPS:])


def forward_and_backward_us(scan: Scan, inputs: Sequence[Tensor], repeats: int) -> tuple[float, float]:
    """Median times on the GPU of the forward, and of the backward of all outputs for all inputs."""
    incoming = [torch.randn_like(output) for output in scan(*inputs)]
    return (
        device_us(lambda: None, lambda _: scan(*inputs), repeats),
        device_us(lambda: scan(*inputs), lambda outputs: torch.autograd.grad(outputs, inputs, incoming), repeats),
    )


def fla_scan() -> tuple[Scan, list[Tensor]]:
    """Fla's kernel and its inputs: k * v ready made, and for each token a gate, which it reads and differentiates."""
    from fla.ops.hgrn import chunk_hgrn

    k, v, decay, start = (tensor.detach() for tensor in make_inputs(torch.float32, GPU_BATCH, "cuda"))
    gates = decay.log().expand_as(k).contiguous()
    inputs = [tensor.requires_grad_() for tensor in (k * v, gates)]
    return lambda x, gate: chunk_hgrn(x, gate, initial_state=start)[:1], inputs


def compare_on_cpu(repeats: int) -> list[str]:
    """Check and time the CPU's backends; the names of the wrong ones."""
    expected = run(lambda *inputs: linear_scan_reference(*inputs, None), make_inputs(torch.float64))
    scans: dict[str, Scan] = {"naive loop": naive_scan}
    for backend in TARGETS:
        scans[backend] = lambda *inputs, backend=backend: linear_scan(*inputs, backend=backend)
    errors = {name: largest_error(scan, expected) for name, scan in scans.items()}
    table = Table(title=f"linear scan, forward + backward, {BATCH} x {TIME} x {WIDTH} float32, {machine()}")
    for column in ("backend", "median ms", "times faster", "target", "largest relative error"):
        table.add_column(column, justify="left" if column == "backend" else "right", overflow="fold")
    busy_fraction = psutil.cpu_percent(interval=1) / 100
    times = median_ms(scans, repeats)
    for name, elapsed in times.items():
        ratio, target = times["naive loop"] / elapsed, TARGETS.get(name)
        verdict = "" if target is None else f"{target:.0f}x {judge(ratio >= target, busy_fraction)}"
        table.add_row(name, f"{elapsed:.2f}", f"{ratio:.1f}", verdict, f"{errors[name]:.1e}")
    Console().print(table)
    return [name for name, error in errors.items() if not error <= TOLERANCE]


def compare_on_gpu(repeats: int) -> list[str]:
    """Check and time the GPU's backends; the names of the wrong ones."""
    doubles = make_inputs(torch.float64, GPU_BATCH, "cuda")
    expected = run(lambda *inputs: linear_scan_reference(*inputs, None), doubles)
    inputs = make_inputs(torch.float32, GPU_BATCH, "cuda")
    errors: dict[str, float] = {}
    times: dict[str, tuple[float, float]] = {}
    for backend in ("torch", "triton"):
        scan: Scan = partial(linear_scan, backend=backend)
        errors[backend] = largest_error(scan, expected, GPU_BATCH, "cuda")
        times[backend] = forward_and_backward_us(scan, inputs, repeats)
    if find_spec("fla") is not None:
        scan, gated = fla_scan()
        times["fla chunk_hgrn"] = forward_and_backward_us(scan, gated, repeats)
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    table = Table(title=f"linear scan, {GPU_BATCH} x {TIME} x {WIDTH} float32, {device}")
    for column in ("backend", "part", "median us", "of Triton's", "TB/s", "target", "largest relative error"):
        table.add_column(column, justify="left" if column in ("backend", "part") else "right", overflow="fold")
    for name, both in times.items():
        for place, (part, elapsed) in enumerate(zip(("forward", "backward"), both, strict=True)):
            ratio, target = elapsed / times["triton"][place], GPU_TARGETS_US[place]
            speed = 4 * GPU_TENSORS[place] * GPU_BATCH * TIME * WIDTH / elapsed / 1e6
            verdict = f"{target:.0f} us {judge(elapsed <= target, 0.0)}" if name == "triton" else ""
            error = f"{errors[name]:.1e}" if name in errors else "not judged"
            table.add_row(name, part, f"{elapsed:.1f}", f"{ratio:.1f}x", f"{speed:.2f}", verdict, error)
    Console().print(table)
    return [f"{name} on the GPU" for name, error in errors.items() if not error <= TOLERANCE]


def main() -> int:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each backend after the warm-up")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--gpu-only", action="store_true", help="leave out the CPU's part")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wrong = [] if options.gpu_only else compare_on_cpu(options.repeats)
    if torch.cuda.is_available():
        wrong += compare_on_gpu(options.repeats)
    if wrong:
        print(f"wrong: {', '.join(wrong)} differ from float64 by more than {TOLERANCE}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
