from collections.abc import Callable
from itertools import permutations
from math import sqrt

import pytest
import torch

from asnn_goose.information.cka import (
    CrossMoments,
    SelfMoments,
    cka_from_moments,
    debiased_cka,
    moment_columns,
    normalized_tokens,
)

# Sums over some hundred tokens in float64.
EXACT = 1e-9


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(tokens: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Two representations that share some directions, with means far from 0."""
    x = normal(tokens, 5) + 2
    return x, x @ normal(5, 7, seed=1) + 3 * normal(tokens, 7, seed=2) - 1


def streamed(x: torch.Tensor, y: torch.Tensor, batches: list[int]) -> float:
    cross, first, second = CrossMoments(x.shape[-1], y.shape[-1]), SelfMoments(x.shape[-1]), SelfMoments(y.shape[-1])
    for some, other in zip(x.split(batches), y.split(batches), strict=True):
        cross.add(some, other)
        first.add(some)
        second.add(other)
    return cka_from_moments(cross, first, second)


def hsic_by_tuples(x: torch.Tensor, y: torch.Tensor) -> float:
    """The U-statistic that HSIC is: the mean of K_ij (L_ij + L_qr - 2 L_iq) over all different i, j, q, r."""
    k, el = (x @ x.T).tolist(), (y @ y.T).tolist()
    terms = [k[i][j] * (el[i][j] + el[q][r] - 2 * el[i][q]) for i, j, q, r in permutations(range(len(x)), 4)]
    return sum(terms) / len(terms)


def biased_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_cka_is_the_ratio_of_u_statistics() -> None:
    x, y = related(8)
    by_hand = hsic_by_tuples(x, y) / sqrt(hsic_by_tuples(x, x) * hsic_by_tuples(y, y))
    assert debiased_cka(x, y) == pytest.approx(by_hand, abs=EXACT)
    assert streamed(x, y, [8]) == pytest.approx(by_hand, abs=EXACT)


def test_four_tokens_by_hand() -> None:
    x, y = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]), torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    # K~ is 1 between equal tokens and -1 otherwise: traces 12 and -4, all rows sum to -1, totals -4; n = 4.
    self_term, cross_term = 12 + 16 / 6 - 4, -4 + 16 / 6 - 4
    assert debiased_cka(x, y) == pytest.approx(cross_term / self_term, abs=EXACT)


@pytest.mark.parametrize("cka", [debiased_cka, lambda x, y: streamed(x, y, [200])])
def test_rotation_scale_and_mean_change_nothing(cka: Callable[[torch.Tensor, torch.Tensor], float]) -> None:
    x, y = related()
    rotation, _ = torch.linalg.qr(normal(5, 5, seed=3))
    assert cka(x, 3 * x @ rotation - 4) == pytest.approx(1.0, abs=EXACT)
    assert cka(3 * x @ rotation - 4, y) == pytest.approx(cka(x, y), abs=EXACT)
    assert cka(y, x) == pytest.approx(cka(x, y), abs=EXACT)


def test_independent_representations_have_none_though_the_biased_estimate_says_so() -> None:
    x, y = normal(300, 100), normal(300, 100, seed=1)
    assert biased_cka(x, y) > 0.1
    # Over draws it deviates by about sqrt(2) / 300 = 0.005.
    assert abs(debiased_cka(x, y)) < 0.02


def test_a_shared_half_is_half() -> None:
    # x = [a, b], y = [a, c]: |cov(x, y)|^2 is the width of a, |cov(x, x)|^2 twice that.
    a, b, c = (normal(3000, 4, seed=seed) for seed in range(3))
    assert debiased_cka(torch.cat([a, b], dim=1), torch.cat([a, c], dim=1)) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("batches", [[200], [1] * 200, [3, 190, 7]])
def test_streamed_is_exact_however_rows_are_batched(batches: list[int]) -> None:
    x, y = related()
    assert streamed(x, y, batches) == pytest.approx(debiased_cka(x, y), abs=EXACT)


def test_batches_keep_their_axes_and_small_types_are_summed_in_float64() -> None:
    x, y = related()
    spikes, hidden = x.sign().to(torch.int8), y.float()
    batched = streamed(spikes.reshape(10, 20, 5), hidden.reshape(10, 20, 7), [4, 6])
    assert batched == pytest.approx(debiased_cka(spikes.double(), hidden.double()), abs=EXACT)


@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_what_never_changes_is_like_nothing(constant: float) -> None:
    silent = torch.full((50, 3), constant)
    assert debiased_cka(silent, normal(50, 4)) == 0.0
    assert streamed(normal(50, 4), silent, [50]) == 0.0


def test_memory_does_not_grow_with_tokens(state_size: Callable[[object], int]) -> None:
    cross, own = CrossMoments(5, 7), SelfMoments(5)
    sizes = []
    for tokens in (10, 1000):
        x, y = related(tokens)
        cross.add(x, y)
        own.add(x)
        sizes.append(state_size(cross) + state_size(own))
    assert sizes[0] == sizes[1]


def test_normalized_tokens_have_mean_0_and_rms_1_and_do_not_dominate() -> None:
    x = normal(2, 6, 50)
    x[0, 0] *= 3000
    found = normalized_tokens(x.float())
    assert found.dtype == torch.float64
    assert float(found.mean(dim=-1).abs().max()) < 1e-6
    assert float((found.square().mean(dim=-1) - 1).abs().max()) < 1e-4
    assert not normalized_tokens(torch.zeros(3, 4)).any()


def test_columns_made_once_serve_every_comparison() -> None:
    x, y = related()
    columns, other = moment_columns(x), moment_columns(y)
    cross, own, same = CrossMoments(5, 7), SelfMoments(5), SelfMoments(7)
    cross.add_columns(columns, other)
    own.add_columns(columns.reshape(10, 20, -1))
    same.add_columns(other)
    assert columns.shape == (200, 8)
    assert cka_from_moments(cross, own, same) == streamed(x, y, [200])


def test_too_few_or_unequal_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 tokens, got 3"):
        debiased_cka(normal(3, 2), normal(3, 2))
    cross, own, other = CrossMoments(2, 2), SelfMoments(2), SelfMoments(2)
    cross.add(normal(5, 2), normal(5, 2))
    own.add(normal(5, 2))
    with pytest.raises(ValueError, match=r"the same tokens, got \[0, 5\]"):
        cka_from_moments(cross, own, other)
