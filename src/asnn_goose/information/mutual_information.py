"""Entropy and mutual information in bits, from counts: I(X; Y) = H(X) + H(Y) - H(X, Y).

The plug-in estimate takes frequencies for probabilities. That makes an entropy of m occupied cells too small by about
(m - 1) / (2 N ln 2) bits (Miller 1955), which the corrected estimate adds.
"""

from math import log

import torch
from jaxtyping import Float64, Real
from torch import Tensor


def entropy_bits(counts: Real[Tensor, "*tables cells"], corrected: bool = True) -> Float64[Tensor, "*tables"]:
    """Entropy of each table, in bits.

    Args:
        counts: How often each cell was met.
        corrected: Add Miller's correction; the result may then exceed log2(cells). Otherwise the plug-in estimate.

    Raises:
        ValueError: A table that counts nothing.
    """
    counts = counts.double()
    total = counts.sum(dim=-1)
    if bool((total <= 0).any()):
        raise ValueError("entropy needs at least one count in each table, got an empty one")
    # -sum(n / N log(n / N)) = log N - sum(n log n) / N
    nats: Float64[Tensor, "*tables"] = total.log() - torch.special.xlogy(counts, counts).sum(dim=-1) / total
    if corrected:
        nats = nats + ((counts > 0).sum(dim=-1) - 1) / (2 * total)
    return nats / log(2)


def mutual_information_bits(
    counts: Real[Tensor, "*tables first second"], corrected: bool = True
) -> Float64[Tensor, "*tables"]:
    """Mutual information of the two variables of each table, in bits.

    Corrected, which adds (m_x + m_y - m_xy - 1) / (2 N ln 2) for m occupied cells, it may be slightly negative: the
    estimate of independent variables lies around 0 and is not cut off, since that would bias its mean. The plug-in
    estimate is never negative, but for rounding, and too large by about (m_x - 1)(m_y - 1) / (2 N ln 2).

    Raises:
        ValueError: A table that counts nothing.

    Source: Miller 1955 through Paninski 2003, "Estimation of entropy and mutual information", sec. 4.1.
    """
    first = entropy_bits(counts.sum(dim=-1), corrected)
    second = entropy_bits(counts.sum(dim=-2), corrected)
    return first + second - entropy_bits(counts.flatten(-2), corrected)
