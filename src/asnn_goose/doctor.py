"""`asnn-goose doctor`: what this machine can do for a run, and what it lacks."""

import importlib.metadata
import importlib.util
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from asnn_goose.data.cache import cache_directory
from asnn_goose.data.hub import hub_answers
from asnn_goose.errors import GooseError
from asnn_goose.models.recurrence import linear_scan
from asnn_goose.training.precision import matmul_speedup

GIB = 1024**3
# A 135M teacher, its tokens and a few checkpoints fit in this.
WANTED_DISK_BYTES = 4 * GIB
WANTED_MEMORY_BYTES = 4 * GIB
SCAN_SHAPE = (2, 33, 5)
SCAN_TOLERANCE = 1e-5

Verdict = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at: ok, a note that something is slower or missing but optional, or failed."""

    name: str
    text: str
    verdict: Verdict


def examine_machine() -> list[Finding]:
    """Look at everything a run leans on; each check stands alone, so that one failure hides no other."""
    return [check() for check in CHECKS]


def _python() -> Finding:
    return Finding("python", f"{platform.python_version()} on {platform.platform()}", "ok")


def _packages() -> Finding:
    names = ("asnn-goose", "torch", "transformers", "accelerate", "datasets", "safetensors")
    return Finding("packages", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names), "ok")


def _device() -> Finding:
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        text = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, {torch.cuda.device_count()} of them"
        return Finding("device", text, "ok")
    return Finding("device", f"CPU, {torch.get_num_threads()} threads; no CUDA device", "ok")


def _bf16() -> Finding:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speedup = matmul_speedup(torch.bfloat16, device)
    return Finding("bf16 against fp32", f"{speedup:.1f}x as fast in a matrix product", "ok" if speedup > 1 else "note")


def _scan() -> Finding:
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn(SCAN_SHAPE, generator=generator) for _ in range(2))
    decay, state = torch.rand(SCAN_SHAPE[2], generator=generator), torch.zeros(SCAN_SHAPE[0], SCAN_SHAPE[2])
    expected, _ = linear_scan(key.double(), value.double(), decay.double(), state.double(), backend="reference")
    found, _ = linear_scan(key, value, decay, state)
    error = float((found - expected).abs().max())
    if error > SCAN_TOLERANCE:
        return Finding("recurrence", f"differs from the float64 reference by {error:.1e}", "failed")
    if importlib.util.find_spec("numba") is None:
        return Finding("recurrence", "torch backend; pip install 'asnn-goose[cpu]' makes it faster on a CPU", "note")
    return Finding("recurrence", f"numba backend, error {error:.1e} against float64", "ok")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    verdict: Verdict = "ok" if memory.available >= WANTED_MEMORY_BYTES else "note"
    return Finding("memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free", verdict)


def _disk() -> Finding:
    try:
        cache = cache_directory()
    except GooseError as error:
        return Finding("cache", str(error), "failed")
    free = shutil.disk_usage(cache).free
    verdict: Verdict = "ok" if free >= WANTED_DISK_BYTES else "failed"
    return Finding("cache", f"{cache}, {free / GIB:.1f} GiB free of {WANTED_DISK_BYTES / GIB:.0f} wanted", verdict)


def _hub() -> Finding:
    if hub_answers():
        return Finding("model hub", "answers", "ok")
    way = "teacher.name=smollm2, a directory or a .gguf file work without it"
    return Finding("model hub", f"does not answer; {way}", "note")


CHECKS: tuple[Callable[[], Finding], ...] = (_python, _packages, _device, _bf16, _scan, _memory, _disk, _hub)
