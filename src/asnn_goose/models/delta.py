"""The generalised delta rule on the fastest backend the machine has; `kernels/delta_reference.py` defines it."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asnn_goose.kernels.delta_chunk import delta_rule_chunked
from asnn_goose.kernels.delta_reference import delta_rule_reference

DeltaBackend = Literal["auto", "reference", "torch"]


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

    All in the dtype of the state, float32 or float64, also under autocast, because a state is a long sum.

    Raises:
        ValueError: Not one step.
    """
    if key.shape[1] == 0:
        raise ValueError("the delta rule needs at least one step")
    rule = (
        delta_rule_chunked if backend == "torch" or (backend == "auto" and key.shape[1] > 1) else delta_rule_reference
    )
    with torch.autocast(key.device.type, enabled=False):
        return rule(receptance, key, value, log_decay, erase, write, initial_state, valid)
