import pytest

from asnn_goose.config_temperature import FixedTemperature, LearnedTemperature
from asnn_goose.objectives.temperature_watch import TemperatureWatch


def said(temperatures, chosen=None):
    watch = TemperatureWatch(chosen or LearnedTemperature())
    return [warning for value in temperatures for warning in watch.look({"temperature": value})]


@pytest.mark.parametrize("bound", [1.0, 10.0])
def test_sitting_at_a_bound_is_said_once(bound):
    (warning,) = said([5.0, *[bound] * 30])
    assert f"sits at its bound {bound:g}" in warning


def test_touching_a_bound_is_nothing():
    assert said([10.0] * 4 + [9.0] + [10.0] * 4) == []


def test_swinging_is_said_once():
    (warning,) = said([2.0 + 0.5 * (-1) ** number for number in range(40)])
    assert "swings between 1.5 and 2.5: lower objective.temperature.learning_rate" in warning


def test_neither_a_steady_rise_nor_a_tremor_is_swinging():
    assert said([2.0 + 0.1 * number for number in range(40)]) == []
    assert said([2.0 + 0.001 * (-1) ** number for number in range(40)]) == []


def test_a_temperature_that_does_not_learn_is_left_alone():
    assert said([10.0] * 30, FixedTemperature(value=10.0)) == []


def test_a_stage_without_a_temperature_is_left_alone():
    assert list(TemperatureWatch(LearnedTemperature()).look({"kl_weight": 1.0})) == []
