"""Where a training step's time on the device goes, from torch's profiler: for `training_step.py` beside this."""

from collections import defaultdict
from collections.abc import Callable

import torch
from rich.table import Table

# What a kernel's name tells of its work, the first that fits.
KINDS = {
    "recurrence": (
        "solve_",
        "carry_",
        "read_kernel",
        "read_backward",
        "gradients_",
        "scan_kernel",
        "reads_",
        "writes_",
    ),
    "mixer inputs": ("site_", "mixer_", "convolution_", "taps_", "encode"),
    "feed-forward gate": ("swiglu",),
    "loss over the vocabulary": ("rows_kernel",),
    "matrix products": ("nvjet", "gemm", "cutlass", "splitK", "cublas"),
    "teacher's attention": ("flash", "fmha", "attention", "sdpa"),
    "optimizer": ("multi_tensor", "FusedAdam", "fused_adam"),
    "elementwise, compiled": ("triton_",),
}


def profile(take_step: Callable[[], None], rows: int) -> list[Table]:
    """Where a step's time on the device goes: by kind of work, and kernel by kernel."""
    cuda = torch.cuda.is_available()
    activities = [torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        take_step()
        if cuda:
            torch.cuda.synchronize()
    field = "self_device_time_total" if cuda else "self_cpu_time_total"
    kernels = [(getattr(event, field) / 1e3, event.count, event.key) for event in profiler.key_averages()]
    whole = sum(ms for ms, _, _ in kernels)
    by_kind: dict[str, float] = defaultdict(float)
    for ms, _, name in kernels:
        by_kind[next((kind for kind, marks in KINDS.items() if any(m in name for m in marks)), "other")] += ms
    kinds = Table(title=f"a step by kind of work, {whole:.1f} ms")
    listed = Table(title="the costliest kernels")
    for table, columns in ((kinds, ("kind", "ms", "share")), (listed, ("kernel", "ms", "calls", "us each"))):
        for column in columns:
            table.add_column(column, justify="left" if column in ("kind", "kernel") else "right", no_wrap=True)
    for kind, ms in sorted(by_kind.items(), key=lambda item: -item[1]):
        kinds.add_row(kind, f"{ms:.1f}", f"{ms / whole:.0%}")
    for ms, count, name in sorted(kernels, reverse=True)[:rows]:
        listed.add_row(name[:100], f"{ms:.2f}", str(count), f"{ms / count * 1e3:.0f}")
    return [kinds, listed]
