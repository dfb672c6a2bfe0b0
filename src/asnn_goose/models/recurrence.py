"""The per-channel recurrence S_t = decay * S_{t-1} + k_t * v_t, on the fastest backend the machine has."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asnn_goose.errors import MachineError
from asnn_goose.kernels.reference import linear_scan_reference
from asnn_goose.kernels.scan_torch import linear_scan_torch

ScanBackend = Literal["auto", "reference", "torch", "numba", "triton"]

logger = logging.getLogger(__name__)


def linear_scan(
    k: Float[Tensor, "batch time width"],
    v: Float[Tensor, "batch time width"],
    decay: Float[Tensor, " width"],
    initial_state: Float[Tensor, "batch width"],
    valid: Bool[Tensor, "batch time"] | None = None,
    backend: ScanBackend = "auto",
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
    """The state after each step, and after the last one: what the next call takes as its initial state.

    `decay` lies in (0, 1). Where `valid` is False the step leaves the state untouched and gets no
    gradient. States are float32 whatever the inputs (float64 if k or v is), also under autocast, because
    a state is a long sum. `auto` takes numba on a CPU and Triton on a GPU, if the machine has it, else torch.

    Raises:
        ValueError: shapes that do not belong together, no step at all, numba asked for off the CPU, or Triton off a
            GPU or in float64.
        MachineError: numba or Triton asked for where it cannot be imported.
    """
    _check_shapes(k, v, decay, initial_state, valid)
    double = torch.float64 in (k.dtype, v.dtype)
    dtype = torch.float64 if double else torch.float32
    k, v, decay, initial_state = (tensor.to(dtype) for tensor in (k, v, decay, initial_state))
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (k, v, decay, initial_state))
    if backend == "auto" and k.shape[1] == 1 and not needs_gradient:
        # Generation comes here once a layer a token, where a kernel's fixed cost would outweigh its work.
        return linear_scan_reference(k, v, decay, initial_state, valid)
    return _kernel(backend, k)(k, v, decay, initial_state, valid)


def _kernel(backend: ScanBackend, k: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function that computes the scan of such tensors for a backend."""
    match _fastest_backend(k.device.type, k.dtype) if backend == "auto" else backend:
        case "reference":
            return linear_scan_reference
        case "numba":
            if k.device.type != "cpu":
                raise ValueError(f"the numba scan runs on cpu tensors, got {k.device.type}; use backend='torch'")
            return _numba_kernel()
        case "triton":
            return _triton_kernel()
        case _:
            return linear_scan_torch


def _numba_kernel() -> Callable[..., tuple[Tensor, Tensor]]:
    """The numba scan, imported only here because numba is optional."""
    from asnn_goose.kernels.scan_numba import linear_scan_numba

    return linear_scan_numba


def _triton_kernel() -> Callable[..., tuple[Tensor, Tensor]]:
    """The Triton scan, imported only here because triton is optional."""
    from asnn_goose.kernels.scan_triton import linear_scan_triton

    return linear_scan_triton


@torch.compiler.assume_constant_result
def _fastest_backend(device_type: str, dtype: torch.dtype) -> ScanBackend:
    """What `auto` stands for; the compiler takes the answer as it is, because it can trace neither cache nor log."""
    # The Triton scan is written for float32 alone.
    return "torch" if device_type == "cuda" and dtype == torch.float64 else _first_importable(device_type)


@cache
def _first_importable(device_type: str) -> ScanBackend:
    """The fastest backend for a device that can be imported: chosen, and said, once."""
    backend: ScanBackend = "torch"
    try:
        match device_type:
            case "cpu":
                _numba_kernel()
                backend = "numba"
            case "cuda":
                _triton_kernel()
                backend = "triton"
    except MachineError as error:
        logger.info("linear scan on %s: torch backend (%s)", device_type, error)
    else:
        logger.info("linear scan on %s: %s backend", device_type, backend)
    return backend


def _check_shapes(k: Tensor, v: Tensor, decay: Tensor, initial_state: Tensor, valid: Tensor | None) -> None:
    """Refuse shapes that broadcasting would otherwise accept and compute something else with."""
    if k.ndim != 3 or k.shape[1] == 0:
        raise ValueError(f"k must be (batch, time, width) with at least one step, got {tuple(k.shape)}")
    batch, time, width = k.shape
    expected = {
        "v": (batch, time, width),
        "decay": (width,),
        "initial_state": (batch, width),
        "valid": (batch, time),
    }
    given = {"v": v, "decay": decay, "initial_state": initial_state, "valid": valid}
    for name, tensor in given.items():
        if tensor is not None and tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"{name} must have shape {expected[name]} to go with k of shape {tuple(k.shape)}, "
                f"got {tuple(tensor.shape)}; expand it before the call"
            )
