"""Debiased linear CKA: how alike two representations of the same tokens are, 0 on average when they are independent.

With Gram matrices K = X X', L = Y Y' whose diagonals are set to 0 (K~, L~), of n tokens:
HSIC(K, L) = [tr(K~L~) + 1'K~1 1'L~1 / ((n-1)(n-2)) - 2 / (n-2) 1'K~L~1] / (n (n-3))   (Song et al. 2012, eq. 5)
CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))   (Nguyen et al. 2021, eq. 3)
All three terms are polynomials in moments of x and y, so rows can be streamed and the result is still exact.
"""

from math import sqrt

import torch
from jaxtyping import Float64, Real
from torch import Tensor

# A self-term below this share of its largest part is rounding: the representation is constant.
ROUNDING = 1e-13
LEAST_TOKENS = 4


def normalized_tokens(x: Real[Tensor, "*tokens width"], epsilon: float = 1e-6) -> Float64[Tensor, "*tokens width"]:
    """Each token with mean 0 and root mean square 1 over its channels, so that no few tokens dominate CKA.

    Args:
        x: Tokens; one that is constant over its channels becomes 0.
        epsilon: Added to the mean square.
    """
    centered = x.double() - x.double().mean(dim=-1, keepdim=True)
    return centered / (centered.square().mean(dim=-1, keepdim=True) + epsilon).sqrt()


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


class CrossMoments:
    """What CKA needs of two representations together; size width * other_width, whatever the number of tokens.

    Attributes:
        tokens: How many have been added.
        products: X'Y.
        first_by_squares: Sum of x |y|^2.
        second_by_squares: Sum of y |x|^2.
        squares: Sum of |x|^2 |y|^2.
    """

    def __init__(self, width: int, other_width: int, device: torch.device | str = "cpu") -> None:
        self.tokens = 0
        self.products = torch.zeros(width, other_width, dtype=torch.float64, device=device)
        self.first_by_squares = torch.zeros(width, dtype=torch.float64, device=device)
        self.second_by_squares = torch.zeros(other_width, dtype=torch.float64, device=device)
        self.squares = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, x: Real[Tensor, "*tokens width"], y: Real[Tensor, "*tokens other_width"]) -> None:
        """Take in tokens of both."""
        x, y = x.flatten(0, -2).double(), y.flatten(0, -2).double()
        squares_x, squares_y = x.square().sum(dim=1), y.square().sum(dim=1)
        self.tokens += len(x)
        self.products.addmm_(x.T, y)
        self.first_by_squares += squares_y @ x
        self.second_by_squares += squares_x @ y
        self.squares += squares_x @ squares_y


class SelfMoments:
    """What CKA needs of one representation, shared by all that it is compared with.

    Attributes:
        sums: Sum of x.
        square_sum: Sum of |x|^2.
        with_itself: Its moments with itself.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(width, dtype=torch.float64, device=device)
        self.square_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.with_itself = CrossMoments(width, width, device)

    def add(self, x: Real[Tensor, "*tokens width"]) -> None:
        """Take in tokens."""
        x = x.flatten(0, -2).double()
        self.sums += x.sum(dim=0)
        self.square_sum += x.square().sum()
        self.with_itself.add(x, x)


def cka_from_moments(cross: CrossMoments, first: SelfMoments, second: SelfMoments) -> float:
    """What `debiased_cka` gives for all tokens that were added, which have to be the same ones in all three.

    Raises:
        ValueError: Fewer than 4 tokens, or unequal numbers of them.
    """
    numbers = {cross.tokens, first.with_itself.tokens, second.with_itself.tokens}
    if len(numbers) > 1:
        raise ValueError(f"moments must be of the same tokens, got {sorted(numbers)} of them")
    return _ratio(
        _hsic_from_moments(cross, first, second),
        _hsic_from_moments(first.with_itself, first, first),
        _hsic_from_moments(second.with_itself, second, second),
    )


def _hsic_from_moments(cross: CrossMoments, first: SelfMoments, second: SelfMoments) -> tuple[float, float]:
    """HSIC by moments: tr(K~L~) = |X'Y|^2 - sum |x|^2 |y|^2, and so on."""
    row_products = (
        first.sums @ cross.products @ second.sums
        - first.sums @ cross.first_by_squares
        - second.sums @ cross.second_by_squares
        + cross.squares
    )
    return _hsic(
        float(cross.products.square().sum() - cross.squares),
        float(first.sums.square().sum() - first.square_sum),
        float(second.sums.square().sum() - second.square_sum),
        float(row_products),
        cross.tokens,
    )


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
