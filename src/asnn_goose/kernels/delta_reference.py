"""What every kernel of the generalised delta rule must compute, as a plain loop over time.

S_t = S_{t-1} (w_t I - a_t k_t k_t^T) + b_t v_t k_t^T, read by y_t = S_t r_t, with the state S (value x key) of a head.
It is the recurrence of RWKV-7 "Goose" (Peng et al. 2025, arXiv 2503.14456) with scalars w, a and b for each head.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def delta_rule_reference(
    receptance: Float[Tensor, "batch time heads group key"],
    key: Float[Tensor, "batch time heads key"],
    value: Float[Tensor, "batch time heads value"],
    log_decay: Float[Tensor, "batch time heads"],
    erase: Float[Tensor, "batch time heads"],
    write: Float[Tensor, "batch time heads"],
    initial_state: Float[Tensor, "batch heads value key"],
    valid: Bool[Tensor, "batch time"] | None,
) -> tuple[Float[Tensor, "batch time heads group value"], Float[Tensor, "batch heads value key"]]:
    """What is read after each step and the state after the last one, in the dtype of the inputs.

    In float64 this is the oracle of the other backends.

    Args:
        receptance: Reads the state; several may share the state of one key/value head.
        key: Where is written and erased, of Euclidean length at most 1.
        value: What is written.
        log_decay: log w, at most 0.
        erase: a, from 0 to 1: how much of what the key reads is taken away.
        write: b, from 0 to 1.
        initial_state: State before the first step.
        valid: Where it is False the step leaves the state as it was.
    """
    state, read = initial_state, []
    for step in range(key.shape[1]):
        k, v = key[:, step], value[:, step]
        found = torch.einsum("bhvk,bhk->bhv", state, k)
        new = write[:, step, :, None] * v - erase[:, step, :, None] * found
        updated = log_decay[:, step, :, None, None].exp() * state + new.unsqueeze(-1) * k.unsqueeze(-2)
        state = updated if valid is None else torch.where(valid[:, step, None, None, None], updated, state)
        read.append(torch.einsum("bhvk,bhgk->bhgv", state, receptance[:, step]))
    return torch.stack(read, dim=1), state
