from math import inf

import pytest
import torch

from asnn_goose.information.significance import compare_with_null


def test_a_comparison_by_hand() -> None:
    found = compare_with_null(5.0, torch.tensor([1.0, 2.0, 3.0]))
    assert (found.mean, found.deviation, found.z, found.p) == (2.0, 1.0, 3.0, 1 / 4)
    assert found.excess == 3.0


@pytest.mark.parametrize(("observed", "p"), [(3.5, 1 / 5), (3.0, 2 / 5), (1.5, 4 / 5), (0.0, 1.0)])
def test_p_counts_the_permutations_that_reach_the_value(observed: float, p: float) -> None:
    assert compare_with_null(observed, torch.tensor([1.0, 2.0, 3.0, 2.0])).p == p


def test_rounding_makes_no_difference_to_a_tie() -> None:
    assert compare_with_null(0.1 + 0.2, torch.tensor([0.3, 0.3], dtype=torch.float64)).p == 1.0


def test_permutations_that_do_not_differ_give_no_finite_z() -> None:
    alike = torch.zeros(9)
    assert compare_with_null(0.0, alike).z == 0.0
    assert compare_with_null(1.0, alike).z == inf
    assert compare_with_null(-1.0, alike).z == -inf


def test_p_of_a_value_like_any_other_is_uniform() -> None:
    draws = torch.rand(2000, 20, generator=torch.Generator().manual_seed(0))
    found = torch.tensor([compare_with_null(float(row[0]), row[1:]).p for row in draws])
    # 20 possible values, each with the share 0.05 and a deviation of 0.005.
    for share in (0.05, 0.25, 0.5):
        assert float((found <= share + 1e-9).double().mean()) == pytest.approx(share, abs=0.04)


def test_a_single_permutation_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 permutations, got 1"):
        compare_with_null(0.0, torch.zeros(1))
