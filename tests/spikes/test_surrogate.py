import math

import pytest
import torch

from asnn_goose.spikes.surrogate import SurrogateSpec, staircase, surrogate_derivative

# The logistic density at one half-width from the threshold: 4 s(2) (1 - s(2)) = 1 / cosh(1)^2.
SIGMOID_AT_WIDTH = 1.0 / math.cosh(1.0) ** 2


def derivative(points, levels=1, **spec):
    return surrogate_derivative(torch.tensor(points, dtype=torch.float64), levels, SurrogateSpec(**spec)).tolist()


def test_the_staircase_steps_at_halves_up_to_its_levels_and_without_sign_is_flat_below_zero():
    points = torch.tensor([-9.0, -1.5, -0.5, -0.49, 0.0, 0.49, 0.5, 1.49, 1.5, 9.0])
    assert staircase(points, 2).tolist() == [-2, -2, -1, 0, 0, 0, 1, 1, 2, 2]
    assert staircase(points, 2, signed=False).tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ste", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("recorded_ste", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("clipped_ste", [1.0, 1.0, 1.0, 1.0, 0.0]),
        ("sigmoid", [1 / math.cosh(0.5) ** 2, 1.0, 1 / math.cosh(0.25) ** 2, SIGMOID_AT_WIDTH, 1 / math.cosh(2) ** 2]),
        ("triangle", [0.5, 1.0, 0.75, 0.0, 0.0]),
        ("superspike", [1 / 1.5**2, 1.0, 1 / 1.25**2, 1 / 4, 1 / 9]),
        ("atan", [1 / 1.25, 1.0, 1 / 1.0625, 1 / 2, 1 / 5]),
    ],
)
def test_ternary_surrogate_has_its_published_shape(kind, expected):
    assert derivative([0.0, 0.5, 0.75, 1.5, 2.5], kind=kind) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["sigmoid", "triangle", "superspike", "atan"])
def test_bump_has_its_peak_of_one_at_each_of_three_thresholds(kind):
    peaks = derivative([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], levels=3, kind=kind)
    assert peaks == pytest.approx([1.0] * 6, abs=1e-12)


def test_beyond_the_last_level_the_distance_is_to_the_last_threshold():
    assert derivative([2.0, 3.0, 3.5], levels=3, kind="triangle") == pytest.approx([0.5, 0.5, 0.0], abs=1e-12)


def test_clipped_ste_ends_one_width_above_the_last_threshold():
    assert derivative([3.5, 3.5001], levels=3, kind="clipped_ste") == [1.0, 0.0]
    assert derivative([1.0, 1.0001], levels=1, kind="clipped_ste", width=0.5) == [1.0, 0.0]


@pytest.mark.parametrize("kind", ["ste", "clipped_ste", "sigmoid", "triangle", "superspike", "atan", "recorded_ste"])
def test_surrogate_is_even(kind):
    points = [0.1, 0.7, 1.3, 2.2, 9.0]
    assert derivative(points, levels=2, kind=kind) == derivative([-point for point in points], levels=2, kind=kind)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("sigmoid", SIGMOID_AT_WIDTH), ("triangle", 0.0), ("superspike", 0.25), ("atan", 0.5)],
)
def test_width_is_the_distance_at_which_the_bump_has_fallen(kind, expected):
    assert derivative([0.75], kind=kind, width=0.25) == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize("kind", ["ste", "clipped_ste", "triangle"])
def test_gradient_scale_multiplies_the_derivative(kind):
    assert derivative([0.75], kind=kind, gradient_scale=3.0)[0] == 3.0 * derivative([0.75], kind=kind)[0] > 0.0
