"""Debiased linear CKA: how alike two representations of the same tokens are, 0 on average when they are independent.

With Gram matrices K = X X', L = Y Y' whose diagonals are set to 0 (K~, L~), of n tokens:
HSIC(K, L) = [tr(K~L~) + 1'K~1 1'L~1 / ((n-1)(n-2)) - 2 / (n-2) 1'K~L~1] / (n (n-3))   (Song et al. 2012, eq. 5)
CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))   (Nguyen et al. 2021, eq. 3)
All three terms are polynomials in moments of x and y, so rows can be streamed and the result is still exact.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float64, Real
from torch import Tensor

from asnn_goose.information.products import SelfProducts, even_columns

# A self-term below this share of its largest part is rounding: the representation is constant.
ROUNDING = 1e-13
LEAST_TOKENS = 4


def normalized_tokens(x: Real[Tensor, "*tokens width"], epsilon: float = 1e-6) -> Float64[Tensor, "*tokens width"]:
    """Each token with mean 0 and root mean square 1 over its channels, so that no few tokens dominate CKA.

    Args:
        x: Tokens; one that is constant over its channels becomes 0.
        epsilon: Added to the mean square.
    """
    given = x.double()
    centered = given - given.mean(dim=-1, keepdim=True)
    return centered.div_((centered.square().mean(dim=-1, keepdim=True) + epsilon).sqrt())


def debiased_cka(x: Real[Tensor, "tokens width"], y: Real[Tensor, "tokens other_width"]) -> float:
    """CKA of two representations in memory (tokens ** 2 numbers); 1 when they are equal up to rotation and scale.

    It may be slightly negative, and is 0 where one of them is constant.

    Raises:
        ValueError: Fewer than 4 tokens.
    """
    gram_x, gram_y = _hollow_gram(x), _hollow_gram(y)
    cross, self_x, self_y = (
        _hsic(
            float((first * second).sum()),
            float(first.sum()),
            float(second.sum()),
            float(first.sum(dim=1) @ second.sum(dim=1)),
            len(x),
        )
        for first, second in ((gram_x, gram_y), (gram_x, gram_x), (gram_y, gram_y))
    )
    return _ratio(cross, self_x, self_y)


def moment_columns(x: Real[Tensor, "*tokens width"]) -> Float64[Tensor, "*tokens columns"]:
    """x, zeros that make the columns `even_columns`, |x|^2 and 1: their products are all moments that CKA needs."""
    width = x.shape[-1]
    columns = torch.empty(*x.shape[:-1], even_columns(width + 2), dtype=torch.float64, device=x.device)
    columns[..., :width] = x
    columns[..., width:-2] = 0.0
    columns[..., -2] = torch.linalg.vector_norm(columns[..., :width], dim=-1).square_()
    columns[..., -1] = 1.0
    return columns


class CrossMoments:
    """What CKA needs of two representations together; size width * other_width, whatever the number of tokens."""

    def __init__(self, width: int, other_width: int, device: torch.device | str = "cpu") -> None:
        self._products = torch.zeros(
            even_columns(width + 2), even_columns(other_width + 2), dtype=torch.float64, device=device
        )

    def add(self, x: Real[Tensor, "*tokens width"], y: Real[Tensor, "*tokens other_width"]) -> None:
        """Take in tokens of both."""
        self.add_columns(moment_columns(x), moment_columns(y))

    def add_columns(self, x: Float64[Tensor, "*tokens columns"], y: Float64[Tensor, "*tokens other_columns"]) -> None:
        """Take in tokens as `moment_columns`, which several comparisons may share."""
        self._products.addmm_(x.flatten(0, -2).T, y.flatten(0, -2))

    def moments(self) -> "Moments":
        """Those of all tokens so far."""
        return Moments(self._products)


class SelfMoments:
    """What CKA needs of one representation, shared by all that it is compared with."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self._products = SelfProducts(even_columns(width + 2), device)

    def add(self, x: Real[Tensor, "*tokens width"]) -> None:
        """Take in tokens."""
        self.add_columns(moment_columns(x))

    def add_columns(self, x: Float64[Tensor, "*tokens columns"]) -> None:
        """Take in tokens as `moment_columns`."""
        self._products.add(x.flatten(0, -2))

    def moments(self) -> "Moments":
        """Those of all tokens so far, with themselves."""
        return Moments(self._products.total())


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of two representations x and y, which may be the same.

    Attributes:
        by_columns: Products of their `moment_columns`.
    """

    by_columns: Float64[Tensor, "columns other_columns"]

    @property
    def tokens(self) -> int:
        """How many were added."""
        return int(self.by_columns[-1, -1])

    def hsic(self) -> tuple[float, float]:
        """HSIC by moments, tr(K~L~) = |X'Y|^2 - sum |x|^2 |y|^2 and so on, and the size of its parts."""
        products, squares = self.by_columns[:-2, :-2], self.by_columns[-2, -2]
        # Sums of x, x |y|^2 and |x|^2, and the same of y.
        sums_x, by_squares_x, square_sum_x = self.by_columns[:-2, -1], self.by_columns[:-2, -2], self.by_columns[-2, -1]
        sums_y, by_squares_y, square_sum_y = self.by_columns[-1, :-2], self.by_columns[-2, :-2], self.by_columns[-1, -2]
        row_products = sums_x @ products @ sums_y - sums_x @ by_squares_x - sums_y @ by_squares_y + squares
        return _hsic(
            float(products.square().sum() - squares),
            float(sums_x.square().sum() - square_sum_x),
            float(sums_y.square().sum() - square_sum_y),
            float(row_products),
            self.tokens,
        )


def cka_from_moments(cross: CrossMoments, first: SelfMoments, second: SelfMoments) -> float:
    """What `debiased_cka` gives for all tokens that were added, which have to be the same ones in all three.

    Raises:
        ValueError: Fewer than 4 tokens, or unequal numbers of them.
    """
    both, own, other = cross.moments(), first.moments(), second.moments()
    numbers = {both.tokens, own.tokens, other.tokens}
    if len(numbers) > 1:
        raise ValueError(f"moments must be of the same tokens, got {sorted(numbers)} of them")
    return _ratio(both.hsic(), own.hsic(), other.hsic())


def _hollow_gram(x: Real[Tensor, "tokens width"]) -> Float64[Tensor, "tokens tokens"]:
    """Scalar products of tokens, 0 on the diagonal; HSIC does not see the mean, which would cost digits."""
    centered = x.double() - x.double().mean(dim=0)
    return (centered @ centered.T).fill_diagonal_(0.0)


def _hsic(trace: float, total_x: float, total_y: float, row_products: float, tokens: int) -> tuple[float, float]:
    """HSIC of tr(K~L~), 1'K~1, 1'L~1 and 1'K~L~1, and the size of its parts."""
    if tokens < LEAST_TOKENS:
        raise ValueError(f"debiased CKA needs at least {LEAST_TOKENS} tokens, got {tokens}")
    totals = total_x * total_y / ((tokens - 1) * (tokens - 2))
    rows = 2 * row_products / (tokens - 2)
    return trace + totals - rows, abs(trace) + abs(totals) + abs(rows)


def _ratio(cross: tuple[float, float], self_x: tuple[float, float], self_y: tuple[float, float]) -> float:
    """CKA; HSIC's factor 1 / (n (n-3)) stands above and below."""
    if any(value <= ROUNDING * size for value, size in (self_x, self_y)):
        return 0.0
    return cross[0] / sqrt(self_x[0] * self_y[0])
