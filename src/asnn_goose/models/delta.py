"""The generalised delta rule on the fastest backend the machine has; `kernels/delta_reference.py` defines it."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asnn_goose.errors import MachineError
from asnn_goose.kernels.delta_chunk import delta_rule_chunked
from asnn_goose.kernels.delta_reference import delta_rule_reference

DeltaBackend = Literal["auto", "reference", "torch", "triton"]
if find_spec("triton") is not None:
    from asnn_goose.kernels.delta_triton import delta_rule_triton
else:

    def delta_rule_triton(*inputs: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[misc]
        """Stands in where triton is not installed."""
        raise MachineError("student.backend=triton needs triton, which comes with torch for NVIDIA GPUs; use auto")


TRITON_WIDTHS = (16, 32, 64, 128)
Rule = Callable[..., tuple[Tensor, Tensor]]


def delta_rule(
    receptance: Float[Tensor, "batch time heads group key"],
    key: Float[Tensor, "batch time heads key"],
    value: Float[Tensor, "batch time heads value"],
    log_decay: Float[Tensor, "batch time heads"],
    erase: Float[Tensor, "batch time heads"],
    write: Float[Tensor, "batch time heads"],
    initial_state: Float[Tensor, "batch heads value key"],
    valid: Bool[Tensor, "batch time"] | None = None,
    backend: DeltaBackend = "auto",
) -> tuple[Float[Tensor, "batch time heads group value"], Float[Tensor, "batch heads value key"]]:
    """What is read after each step, and the state after the last one: what the next call takes as its initial state.

    The state keeps its dtype, float32 or float64, also under autocast, because it is a long sum; what is read has the
    receptance's. Receptance, key and value may come in bfloat16: the Triton form then also multiplies in bfloat16 and
    sums in float32.

    Raises:
        ValueError: Not one step, or the Triton form was asked for what it is not written for.
        MachineError: The Triton form was asked for and triton is not installed.
    """
    if key.shape[1] == 0:
        raise ValueError("the delta rule needs at least one step")
    rule = _rule(backend, key, value)
    given = [receptance, key, value]
    if rule is not delta_rule_triton:
        given = [part.to(initial_state.dtype) for part in given]
    with torch.autocast(key.device.type, enabled=False):
        read, state = rule(*given, log_decay, erase, write, initial_state, valid)
    return read.to(receptance.dtype), state


def _rule(backend: DeltaBackend, key: Tensor, value: Tensor) -> Rule:
    if backend == "reference" or (backend == "auto" and key.shape[1] == 1):
        return delta_rule_reference
    widths = {key.shape[-1], value.shape[-1]}
    fits = key.is_cuda and key.dtype != torch.float64 and widths <= set(TRITON_WIDTHS)
    if backend == "triton" or (backend == "auto" and fits):
        return delta_rule_triton
    return delta_rule_chunked
