"""The generalised delta rule in chunks of time: matrix products within a chunk, two short loops over chunks.

Within a chunk the rank-one writes u_t = b_t v_t - a_t S_{t-1} k_t depend on each other through a unit triangular
matrix (Yang et al. 2024, arXiv 2406.06484, for the delta rule; the decay is kept in logarithms, so that no factor
exceeds 1): with p_t the decay from the chunk's start through step t in logarithms and S the state before the chunk,

    M_ts = exp(p_t - p_s) for s <= t        A_ts = a_t M_(t-1)s (k_t . k_s) for s < t        T = (I + A)^-1
    U = T (diag(b) V - diag(a_t exp(p_(t-1))) K S^T)                                         P = M * (R K^T)
    Y = diag(exp(p)) R S^T + P U             S' = exp(p_last) S + U^T diag(exp(p_last - p)) K

The backward is written out: everything but the gradient of the state, which a loop carries from the last chunk to the
first, is again a product of matrices for all chunks at once. The decay's gradient follows from sums already formed: p_t
scales what step t reads (r_t . dr_t) and what is left of its write at every later time (-k_t . its share of dk_t).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# The fastest by benchmarks/delta.py: short chunks leave less work above the diagonal, long ones launch fewer kernels.
CPU_CHUNK, CHUNK = 32, 64


def delta_rule_chunked(
    receptance: Float[Tensor, "batch time heads group key"],
    key: Float[Tensor, "batch time heads key"],
    value: Float[Tensor, "batch time heads value"],
    log_decay: Float[Tensor, "batch time heads"],
    erase: Float[Tensor, "batch time heads"],
    write: Float[Tensor, "batch time heads"],
    initial_state: Float[Tensor, "batch heads value key"],
    valid: Bool[Tensor, "batch time"] | None,
    chunk: int | None = None,
) -> tuple[Float[Tensor, "batch time heads group value"], Float[Tensor, "batch heads value key"]]:
    """As `delta_rule_reference`, for any length; differentiable once, and compilable for fixed shapes."""
    time = key.shape[1]
    if valid is not None:
        keep = valid.unsqueeze(-1).to(key.dtype)
        log_decay, erase, write = log_decay * keep, erase * keep, write * keep
    chunk = min(chunk or (CPU_CHUNK if key.device.type == "cpu" else CHUNK), time)
    missing = -time % chunk
    if missing:
        # A step without decay, erasing or writing leaves the state as it is.
        receptance = functional.pad(receptance, (0, 0, 0, 0, 0, 0, 0, missing))
        key, value = (functional.pad(tensor, (0, 0, 0, 0, 0, missing)) for tensor in (key, value))
        log_decay, erase, write = (functional.pad(tensor, (0, 0, 0, missing)) for tensor in (log_decay, erase, write))
    read, state = _ChunkedRule.apply(receptance, key, value, log_decay, erase, write, initial_state, chunk)
    return read[:, :time] if missing else read, state


class _Decays(NamedTuple):
    """The decay between places of a chunk, from its start and to its end, for (chunks batch heads) at once."""

    between: Tensor  # M
    from_start: Tensor
    before: Tensor
    to_end: Tensor
    whole: Tensor


def _decays(log_decay: Tensor) -> _Decays:
    passed = log_decay.cumsum(dim=-1)
    later = torch.ones(passed.shape[-1], passed.shape[-1], dtype=torch.bool, device=passed.device).triu(1)
    return _Decays(
        between=(passed.unsqueeze(-1) - passed.unsqueeze(-2)).masked_fill_(later, -torch.inf).exp_(),
        from_start=passed.exp().unsqueeze(-1),
        before=(passed - log_decay).exp().unsqueeze(-1),
        to_end=(passed[:, -1:] - passed).exp().unsqueeze(-1),
        whole=passed[:, -1, None, None].exp(),
    )


def _pack(tensor: Tensor, chunk: int) -> Tensor:
    """From (batch time heads ...) to (chunks*batch*heads, time of a chunk, ...), contiguous."""
    chunks: Tensor = tensor.unflatten(1, (-1, chunk))
    return chunks.movedim((1, 3), (0, 2)).flatten(0, 2).contiguous()


def _unpack(tensor: Tensor, batch: int, heads: int) -> Tensor:
    """The inverse of `_pack`."""
    chunks: Tensor = tensor.unflatten(0, (-1, batch, heads))
    return chunks.movedim((0, 2), (1, 3)).flatten(1, 2)


def _shift_times(tensor: Tensor, between: Tensor) -> Tensor:
    """Multiply in place by the decay from behind step s to before step t: the row of the step before, none first."""
    tensor[:, 0] = 0
    tensor[:, 1:] *= between[:, :-1]
    return tensor


class _ChunkedRule(torch.autograd.Function):
    """The rule for a whole number of chunks; every tensor below has its chunks, batch and heads in axis 0."""

    @staticmethod
    def forward(
        ctx: Any,
        receptance: Float[Tensor, "batch time heads group key"],
        key: Float[Tensor, "batch time heads key"],
        value: Float[Tensor, "batch time heads value"],
        log_decay: Float[Tensor, "batch time heads"],
        erase: Float[Tensor, "batch time heads"],
        write: Float[Tensor, "batch time heads"],
        initial_state: Float[Tensor, "batch heads value key"],
        chunk: int,
    ) -> tuple[Float[Tensor, "batch time heads group value"], Float[Tensor, "batch heads value key"]]:
        """Solve all chunks, carry the state through them, read it everywhere."""
        batch, _, heads, group, _ = receptance.shape
        r = _pack(receptance, chunk).transpose(1, 2).flatten(1, 2)  # chunks*batch*heads group*time key
        k, v = _pack(key, chunk), _pack(value, chunk)
        a, b = _pack(erase, chunk).unsqueeze(-1), _pack(write, chunk).unsqueeze(-1)
        decays = _decays(_pack(log_decay, chunk))
        mixing = _shift_times(k @ k.mT, decays.between).mul_(a)
        # Only what lies below the diagonal is read.
        unit = torch.eye(chunk, dtype=k.dtype, device=k.device).expand_as(mixing)
        solved = torch.linalg.solve_triangular(mixing, unit, upper=False, left=False, unitriangular=True)
        new, by_state = (solved * b.mT) @ v, (solved * (a * decays.before).mT) @ k
        states = k.new_empty(len(k) // (batch * heads) + 1, batch * heads, v.shape[-1], k.shape[-1])
        states[0] = initial_state.flatten(0, 1)
        parts = (part.split(batch * heads) for part in (new, by_state, decays.to_end * k, decays.whole))
        for place, (fresh, bound, kept, whole) in enumerate(zip(*parts, strict=True)):
            fresh.baddbmm_(bound, states[place].mT, alpha=-1)
            states[place + 1].copy_(states[place]).mul_(whole).baddbmm_(fresh.mT, kept)
        before = states[:-1].flatten(0, 1)
        mixed = _scale(r @ k.mT, decays.between, group)
        read = _scale(r @ before.mT, decays.from_start, group).baddbmm_(mixed, new)
        ctx.save_for_backward(r, k, v, a, b, *decays, solved, by_state, new, before, mixed)
        ctx.sizes = batch, heads, group
        read = _unpack(read.unflatten(1, (group, chunk)).transpose(1, 2), batch, heads)
        return read, states[-1].unflatten(0, (batch, heads)).clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        read_gradient: Float[Tensor, "batch time heads group value"],
        state_gradient: Float[Tensor, "batch heads value key"],
    ) -> tuple[Tensor | None, ...]:
        """All gradients, at full precision: a compiled backward is traced where the forward ran, under its autocast."""
        with torch.autocast(read_gradient.device.type, enabled=False):
            return _ChunkedRule.gradients(ctx, read_gradient, state_gradient)

    @staticmethod
    def gradients(ctx: Any, read_gradient: Tensor, state_gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Carry the state's gradient from the end, then form every other gradient for all chunks at once."""
        r, k, v, a, b, *rest = ctx.saved_tensors
        decays, (solved, by_state, new, before, mixed) = _Decays(*rest[:5]), rest[5:]
        batch, heads, group = ctx.sizes
        chunk = k.shape[1]
        arriving = _pack(read_gradient, chunk).transpose(1, 2).flatten(1, 2)
        seen = _scale(arriving.clone(), decays.from_start, group)
        # The loop turns the gradients that come from reading alone into the whole ones.
        source = mixed.mT @ arriving
        flows = torch.cat((seen.mT @ r, state_gradient.flatten(0, 1))).unflatten(0, (-1, batch * heads))
        parts = [part.split(batch * heads) for part in (source, by_state, decays.to_end * k, decays.whole)]
        for place in reversed(range(len(parts[0]))):
            fresh, bound, kept, whole = (part[place] for part in parts)
            fresh.baddbmm_(kept, flows[place + 1].mT)
            flows[place].addcmul_(flows[place + 1], whole).baddbmm_(fresh.mT, bound, alpha=-1)
        source = solved.mT @ source
        after = flows[1:].flatten(0, 1)
        pairs = _scale(arriving @ new.mT, decays.between, group)
        r_gradient = (seen @ before).baddbmm_(pairs, k)
        # What reaches k at the time it is written: by the state, by the reads and by the writes after it.
        written = (new @ after).mul_(decays.to_end)
        end = (k * written).sum((1, 2)) + decays.whole[:, 0, 0] * (before * after).sum((1, 2))
        written.baddbmm_(pairs.mT, r)
        pairs = _shift_times(source @ new.mT, decays.between)
        written.baddbmm_(pairs.mT, a * k, alpha=-1)
        # And at the time it erases, divided by a.
        erased = (source @ before).mul_(decays.before).baddbmm_(pairs, k).neg_()
        a_gradient = (k * erased).sum(-1)
        decayed_before = a.squeeze(-1) * a_gradient
        decayed = (r * r_gradient).sum(-1).unflatten(1, (group, chunk)).sum(1) - (k * written).sum(-1) + decayed_before
        decayed[:, -1] += end
        log_gradient = decayed.flip(-1).cumsum(-1).flip(-1) - decayed_before
        b_gradient = (source * v).sum(-1)
        r_gradient = r_gradient.unflatten(1, (group, chunk)).transpose(1, 2)
        shares = r_gradient, written.addcmul_(a, erased), source.mul_(b), log_gradient, a_gradient, b_gradient
        return *(_unpack(share, batch, heads) for share in shares), flows[0].unflatten(0, (batch, heads)).clone(), None


def _scale(tensor: Tensor, factor: Tensor, group: int) -> Tensor:
    """Multiply (rows group*time x) in place by (rows time x) or (rows time 1), in every member of a group."""
    tensor.unflatten(1, (group, -1)).mul_(factor.unsqueeze(1))
    return tensor
