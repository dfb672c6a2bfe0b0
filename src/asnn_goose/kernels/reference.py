"""What the kernels that walk along time must compute, as plain loops over channels.

The recurrence is S_t = decay * S_{t-1} + k_t * v_t. A membrane c that leaks, fires and is reset by what it fired is
u_t = beta * c_{t-1} + z_t, s_t = spike(u_t), c_t = u_t - s_t.
"""

from collections.abc import Callable

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


def membrane_reference(
    z: Float[Tensor, "batch time width"],
    membrane: Float[Tensor, "batch width"],
    valid: Bool[Tensor, "batch time"] | None,
    beta: float,
    spike: Callable[[Tensor], Tensor],
    detach_reset: bool = False,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
    """Spikes s, the potentials u that they were fired at, and the last membrane c, in the dtype of the inputs.

    Where `valid` is False the step fires nothing, its potential is 0, and the membrane stays as it was. Gradients are
    torch's own, with `detach_reset` none through the spikes that are taken off. In float64 this is the oracle of the
    other forms; multiplication and addition round one after the other, as in all of them.
    """
    found = []
    for step, given in enumerate(z.unbind(1)):
        potential = beta * membrane + given
        spikes = spike(potential)
        after = potential - (spikes.detach() if detach_reset else spikes)
        if valid is not None:
            live, silence = valid[:, step, None], torch.zeros_like(potential)
            spikes, potential = torch.where(live, spikes, silence), torch.where(live, potential, silence)
            after = torch.where(live, after, membrane)
        membrane = after
        found.append((spikes, potential))
    values, potentials = (torch.stack(part, dim=1) for part in zip(*found, strict=True))
    return values, potentials, membrane
