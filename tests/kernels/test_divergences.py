import math

import pytest
import torch

from asnn_goose.kernels.divergences import Divergence, divergence_parts

LOG_2, LOG_3 = math.log(2), math.log(3)
KINDS = ["forward_kl", "reverse_kl", "jsd", "skew_kl", "total_variation"]


def logs(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_distributions_are_no_distance_apart(kind):
    same = logs([0.2, 0.3, 0.5])
    assert divergence_parts(same, same, Divergence(kind, 0.3)).value.sum().item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("forward_kl", LOG_2),
        ("reverse_kl", float("inf")),
        # The mixture is (3/4, 1/4).
        ("skew_kl", 2 * LOG_2 - LOG_3),
        ("jsd", 0.5 * (2 * LOG_2 - LOG_3) + 0.25 * ((LOG_2 - LOG_3) + LOG_2)),
        ("total_variation", 0.5),
    ],
)
def test_a_word_that_the_teacher_never_says_by_hand(kind, expected):
    """Teacher (1, 0), student (1/2, 1/2)."""
    value = divergence_parts(logs([1.0, 0.0]), logs([0.5, 0.5]), Divergence(kind)).value.sum().item()
    assert value == pytest.approx(expected)


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"must be in \(0, 1\), got 1"):
        Divergence("jsd", 1.0)
