"""The generalised delta rule in chunks of time: matrix products within a chunk, a short loop over chunks.

Within a chunk the rank-one writes u_t = b_t v_t - a_t S_{t-1} k_t depend on each other through a unit triangular
matrix (Yang et al. 2024, arXiv 2406.06484, for the delta rule; the decay is kept in logarithms, so that no factor
exceeds 1). Solving it once a chunk leaves S_t = sum of decayed u_s k_s^T plus the decayed state before the chunk.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

CHUNK = 64


class _Chunks(NamedTuple):
    """Everything a chunk gives without knowing the state before it; axes (batch, heads, chunks, ...)."""

    key: Tensor
    write_alone: Tensor
    write_by_state: Tensor
    read_alone: Tensor
    read_by_state: Tensor
    to_end: Tensor
    whole_decay: Tensor


def delta_rule_chunked(
    receptance: Float[Tensor, "batch time heads group key"],
    key: Float[Tensor, "batch time heads key"],
    value: Float[Tensor, "batch time heads value"],
    log_decay: Float[Tensor, "batch time heads"],
    erase: Float[Tensor, "batch time heads"],
    write: Float[Tensor, "batch time heads"],
    initial_state: Float[Tensor, "batch heads value key"],
    valid: Bool[Tensor, "batch time"] | None,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "batch time heads group value"], Float[Tensor, "batch heads value key"]]:
    """As `delta_rule_reference`, for any length; differentiable, and compilable for fixed shapes."""
    time = key.shape[1]
    if valid is not None:
        keep = valid.unsqueeze(-1).to(key.dtype)
        log_decay, erase, write = log_decay * keep, erase * keep, write * keep
    chunk = min(chunk, time)
    missing = -time % chunk
    if missing:
        # A step without decay, erasing or writing leaves the state as it is.
        receptance = functional.pad(receptance, (0, 0, 0, 0, 0, 0, 0, missing))
        key, value = (functional.pad(tensor, (0, 0, 0, 0, 0, missing)) for tensor in (key, value))
        log_decay, erase, write = (functional.pad(tensor, (0, 0, 0, missing)) for tensor in (log_decay, erase, write))
    parts = _prepare(receptance, key, value, log_decay, erase, write, chunk)
    state, read = initial_state, []
    for place in range(parts.key.shape[2]):
        # Axes: batch heads time value.
        new = parts.write_alone[:, :, place] - parts.write_by_state[:, :, place] @ state.mT
        by_state = torch.einsum("bhgtk,bhvk->bhgtv", parts.read_by_state[:, :, place], state)
        read.append(by_state + torch.einsum("bhgts,bhsv->bhgtv", parts.read_alone[:, :, place], new))
        kept = new * parts.to_end[:, :, place].unsqueeze(-1)
        state = parts.whole_decay[:, :, place, None, None] * state + kept.mT @ parts.key[:, :, place]
    whole = torch.stack(read, dim=2)  # batch heads chunks group time value
    whole = whole.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    return whole[:, :time], state


def _prepare(
    receptance: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, erase: Tensor, write: Tensor, chunk: int
) -> _Chunks:
    """What the chunks give, all at once."""
    r = receptance.unflatten(1, (-1, chunk)).permute(0, 3, 1, 4, 2, 5)  # batch heads chunks group time key
    k, v = (tensor.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4) for tensor in (key, value))
    log_w, a, b = (tensor.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2) for tensor in (log_decay, erase, write))
    passed = log_w.cumsum(dim=-1)  # batch heads chunks time; the decay from the chunk's start through each step
    before = passed - log_w
    lower = torch.ones(chunk, chunk, dtype=torch.bool, device=key.device).tril(-1)
    # From behind step s to before step t, for s < t: the exponent is never above 0.
    between = (before.unsqueeze(-1) - passed.unsqueeze(-2)).masked_fill(~lower, -torch.inf).exp()
    mixing = a.unsqueeze(-1) * between * (k @ k.mT)
    mixing = mixing + torch.eye(chunk, dtype=mixing.dtype, device=mixing.device)
    sources = torch.cat((b.unsqueeze(-1) * v, (a * before.exp()).unsqueeze(-1) * k), dim=-1)
    solved = torch.linalg.solve_triangular(mixing, sources, upper=False, unitriangular=True)
    write_alone, write_by_state = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    not_later = torch.ones(chunk, chunk, dtype=torch.bool, device=key.device).tril()
    through = (passed.unsqueeze(-1) - passed.unsqueeze(-2)).masked_fill(~not_later, -torch.inf).exp()
    return _Chunks(
        key=k,
        write_alone=write_alone,
        write_by_state=write_by_state,
        read_alone=through.unsqueeze(3) * torch.einsum("bhngtk,bhnsk->bhngts", r, k),
        read_by_state=passed.exp()[:, :, :, None, :, None] * r,
        to_end=(passed[..., -1:] - passed).exp(),
        whole_decay=passed[..., -1].exp(),
    )
