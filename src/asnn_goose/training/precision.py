"""Which number type to compute in: asked of the machine once, by timing, where the recipe says `auto`."""

import time
from collections.abc import Callable

import torch

from asnn_goose.config_training import Precision
from asnn_goose.errors import ConfigError

# bf16 must win clearly: below this ratio its rounding is not worth it.
WORTHWHILE_SPEEDUP = 1.15
CPU_PROBE_WIDTH, CUDA_PROBE_WIDTH = 1024, 8192
REPEATS = 5

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(asked: Precision, device: torch.device) -> Precision:
    """The precision a run uses: what was asked for, or for `auto` bf16 where it is the faster, else fp32.

    Raises:
        ConfigError: fp16 away from a CUDA device, whose gradient scaler it needs.
    """
    if asked == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"training.precision=fp16 needs a CUDA device, this run is on {device.type}: use auto, bf16 or fp32"
        )
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if matmul_speedup(torch.bfloat16, device) >= WORTHWHILE_SPEEDUP else "fp32"


def resolve_teacher_dtype(asked: str, precision: Precision) -> torch.dtype:
    """Number type of the teacher's weights; `auto` follows the run's precision."""
    return DTYPES[precision] if asked == "auto" else getattr(torch, asked)


def matmul_speedup(dtype: torch.dtype, device: torch.device) -> float:
    """How many times faster a matrix product of transformer shape runs in `dtype` than in float32."""
    return _product_seconds(torch.float32, device) / _product_seconds(dtype, device)


def _product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    size = CUDA_PROBE_WIDTH if device.type == "cuda" else CPU_PROBE_WIDTH
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        """One product, waited for."""
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    product()
    return min(_seconds(product) for _ in range(REPEATS))


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
