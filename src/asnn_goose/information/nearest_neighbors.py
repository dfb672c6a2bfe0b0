"""Information between a discrete and a continuous variable from distances: a check on binned estimates.

I(X; Y) = psi(N) + < psi(k_i) - psi(N_x) - psi(m_i) >: around point i, the ball that reaches its k-th neighbour of the
same class holds k_i others of that class and m_i others of any (Ross 2014, "Mutual information between discrete and
continuous data sets", eq. 2). k_i = k unless distances are equal; then both count all that lie in the closed ball, as
in Gao et al. 2017, "Estimating mutual information for discrete-continuous mixtures".
"""

from math import log

import torch
from jaxtyping import Bool, Float64, Int, Int64, Real
from torch import Tensor

# Points whose distances to all others are held at once.
CHUNK_TOKENS = 256
FAR_BALLS = 1024
"""Balls that are measured at once among all others."""
NEAREST = 64
"""Neighbours among which a ball's rim is looked for first; of a rare class it lies further out."""


def nearest_neighbor_bits(
    labels: Int[Tensor, "tokens channels"], values: Real[Tensor, "tokens dimensions"], neighbors: int = 3
) -> Float64[Tensor, " channels"]:
    """Information of each channel's label with the whole vector of values, in bits; it may be slightly negative.

    Points of a class with no more than `neighbors` members are left out, for that channel. Time grows with tokens
    squared, less with channels: meant for about a thousand tokens, and for all channels at once. Euclidean distances,
    so dimensions should have comparable scales.

    Args:
        labels: Any whole numbers.
        values: Of the same tokens; distances should rarely be equal.
        neighbors: k of the source; larger is smoother and blurs detail.

    Raises:
        ValueError: Fewer than one neighbour, or a channel none of whose classes has more members than that.
    """
    if neighbors < 1:
        raise ValueError(f"neighbors must be at least 1, got {neighbors}")
    tokens = len(labels)
    # channels tokens
    classes = labels.T.contiguous()
    members = torch.stack([_members(own) for own in classes])
    kept = members > neighbors
    total = kept.sum(dim=1)
    if bool((total == 0).any()):
        raise ValueError(f"no class of some channel has more than {neighbors} of the {tokens} tokens; give more tokens")
    sums = torch.zeros(len(classes), dtype=torch.float64, device=values.device)
    for chunk in torch.arange(tokens, device=values.device).split(CHUNK_TOKENS):
        distances, order = _sorted_distances(values.double(), chunk)
        terms = _chunk_terms(classes, kept, chunk, distances, order, neighbors)
        terms = terms - torch.digamma(members[:, chunk].double())
        sums += torch.where(kept[:, chunk], terms, 0.0).sum(dim=1)
    return (torch.digamma(total.double()) + sums / total) / log(2)


def _members(labels: Int[Tensor, " tokens"]) -> Int64[Tensor, " tokens"]:
    """How many tokens share each token's label."""
    _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
    members: Int64[Tensor, " tokens"] = counts[classes]
    return members


def _sorted_distances(
    values: Float64[Tensor, "tokens dimensions"], chunk: Int64[Tensor, " points"]
) -> tuple[Float64[Tensor, "points others"], Int64[Tensor, "points others"]]:
    """Distances from the chunk's points to all others in ascending order, and which tokens these are."""
    # The faster way by products gives equal points a distance above 0.
    distances = torch.cdist(values[chunk], values, compute_mode="donot_use_mm_for_euclid_dist")
    distances.scatter_(1, chunk.unsqueeze(1), torch.inf)
    ascending = distances.sort(dim=1, stable=True)
    return ascending.values[:, :-1], ascending.indices[:, :-1]


def _chunk_terms(
    classes: Int[Tensor, "channels tokens"],
    kept: Bool[Tensor, "channels tokens"],
    chunk: Int64[Tensor, " points"],
    distances: Float64[Tensor, "points others"],
    order: Int64[Tensor, "points others"],
    neighbors: int,
) -> Float64[Tensor, "channels points"]:
    """psi(k_i) - psi(m_i) of each point; without meaning for points that are not kept."""
    near = order[:, :NEAREST]
    same = classes[:, near] == classes[:, chunk].unsqueeze(2)
    terms, reached = _ball_terms(same, kept[:, near], distances[:, : near.shape[1]], neighbors)
    if near.shape[1] == order.shape[1]:
        return terms
    # A ball that reaches beyond the nearest is measured again, among all.
    for far in (kept[:, chunk] & ~reached).nonzero().split(FAR_BALLS):
        channel, point = far.unbind(dim=1)
        own, others = channel.unsqueeze(1), order[point]
        same = classes[own, others] == classes[channel, chunk[point]].unsqueeze(1)
        terms[channel, point], _ = _ball_terms(same, kept[own, others], distances[point], neighbors)
    return terms


def _ball_terms(
    same: Bool[Tensor, "*points others"],
    kept: Bool[Tensor, "*points others"],
    distances: Float64[Tensor, "... others"],
    neighbors: int,
) -> tuple[Float64[Tensor, "*points"], Bool[Tensor, "*points"]]:
    """psi(k_i) - psi(m_i), and whether a ball's rim and all that lies on it was among these others."""
    before_kth = (same.cumsum(dim=-1, dtype=torch.int32) < neighbors).sum(dim=-1, keepdim=True)
    last = same.shape[-1] - 1
    distances = distances.expand(same.shape)
    rim = distances.gather(-1, before_kth.clamp(max=last))
    inside = distances <= rim
    of_class = (inside & same).sum(dim=-1)
    of_any = (inside & kept).sum(dim=-1)
    return torch.digamma(of_class.double()) - torch.digamma(of_any.double()), ~inside[..., last]
