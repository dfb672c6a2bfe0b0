"""What every recurrence kernel must compute, as a plain loop: S_t = decay * S_{t-1} + k_t * v_t, per channel."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

RECORDED_EPSILON = 1e-8


def linear_scan_reference(
    k: Float[Tensor, "batch time width"],
    v: Float[Tensor, "batch time width"],
    decay: Float[Tensor, " width"],
    initial_state: Float[Tensor, "batch width"],
    valid: Bool[Tensor, "batch time"] | None,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
    """The state after each step and after the last one, in the dtype of the inputs.

    `decay` lies in (0, 1). Where `valid` is False the step leaves the state as it was; the inputs of
    such a step must still be finite, because gradients are torch's own. In float64 this is the oracle
    of the other backends.
    """
    state = initial_state
    states = []
    for step, (key, value) in enumerate(zip(k.unbind(1), v.unbind(1), strict=True)):
        updated = decay * state + key * value
        state = updated if valid is None else torch.where(valid[:, step, None], updated, state)
        states.append(state)
    return torch.stack(states, dim=1), state


def recorded_scan(
    k: Float[Tensor, "batch time width"],
    v: Float[Tensor, "batch time width"],
    decay: Float[Tensor, " width"],
) -> Float[Tensor, "batch time width"]:
    """The scan behind the recorded results, wrong on purpose: kept so that their presets show what it did.

    It computes cumsum(k_t * v_t / (decay**t + 1e-8)) * decay**t, which equals the recurrence only while
    decay**t is far above the 1e-8 that guards the division. At the recorded decay of 0.378 that ends
    after about 25 tokens: the division stops growing, the factor decay**t does not stop shrinking, and
    the state goes to zero whatever is written into it. In float32 decay**t underflows as well.
    """
    times = torch.arange(k.shape[1], device=k.device, dtype=k.dtype)
    powers = decay ** times[:, None]  # time width
    return torch.cumsum(k * v / (powers + RECORDED_EPSILON), dim=1) * powers
