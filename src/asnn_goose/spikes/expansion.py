"""Integer spikes as micro-steps of -1, 0 and 1, and back, without loss.

Unary: a value v in {-D..D} is D steps sign(v) * [|v| > i], whose sum is v: as many events as |v|.
Bitwise: it is bit_length(D) steps sign(v) * bit_i(|v|), whose sum with weights 2^i is v.
"""

from typing import Literal

import torch
from jaxtyping import Real
from torch import Tensor

Code = Literal["unary", "bitwise"]


def expand(values: Real[Tensor, "*shape"], levels: int, code: Code = "unary") -> Real[Tensor, "steps ..."]:
    """Micro-steps of integer spikes in {-levels..levels}, each -1, 0 or 1, in the dtype of the values.

    Raises:
        ValueError: Fewer than one level.
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}: 1 is ternary")
    sizes, signs = values.abs(), values.sign()
    if code == "unary":
        steps = [sizes > step for step in range(levels)]
    else:
        steps = [(sizes // 2**bit) % 2 == 1 for bit in range(levels.bit_length())]
    return torch.stack([signs * step for step in steps])


def collapse(steps: Real[Tensor, "steps ..."], code: Code = "unary") -> Real[Tensor, "*shape"]:
    """The spikes that `expand` made these micro-steps of, in the steps' dtype."""
    if code == "unary":
        return steps.sum(dim=0, dtype=steps.dtype)
    weights = 2 ** torch.arange(len(steps), device=steps.device).to(steps.dtype)
    return (steps * weights.view(-1, *[1] * (steps.ndim - 1))).sum(dim=0, dtype=steps.dtype)
