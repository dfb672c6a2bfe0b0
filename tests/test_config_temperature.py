import pytest
from pydantic import ValidationError

from asnn_goose.config_schedules import LinearSchedule, StepSchedule
from asnn_goose.config_temperature import AdversarialTemperature, Anchor, LearnedTemperature, ScheduledTemperature


def test_the_defaults_are_the_recorded_ones():
    learned, against = LearnedTemperature(), AdversarialTemperature()
    assert (learned.start, learned.lower, learned.upper, learned.learning_rate) == (2.0, 1.0, 10.0, 0.01)
    assert learned.anchor == Anchor(weight=0.1, target=None)
    assert (against.start, against.lower, against.upper, against.lambda_max) == (2.0, 1.0, 5.0, 1.0)
    assert learned.optimizer == against.optimizer == "own"


@pytest.mark.parametrize("kind", [LearnedTemperature, AdversarialTemperature])
def test_bounds_are_in_order_and_the_start_is_between_them(kind):
    with pytest.raises(ValidationError, match="give lower < upper"):
        kind(lower=3.0, upper=3.0)
    with pytest.raises(ValidationError, match=r"start=7 is outside its bounds: give one between 1 and 6"):
        kind(start=7.0, upper=6.0)


def test_a_sigmoid_cannot_start_at_its_bound_and_a_logarithm_can():
    assert LearnedTemperature(start=1.0).start == 1.0
    with pytest.raises(ValidationError, match="start=1 is outside"):
        AdversarialTemperature(start=1.0)


@pytest.mark.parametrize("target", [0.5, StepSchedule(values=(4.0, 0.5))])
def test_an_anchor_outside_the_bounds_is_refused(target):
    with pytest.raises(ValidationError, match=r"anchor.target=0.5 is outside its bounds"):
        LearnedTemperature(anchor=Anchor(target=target))


def test_a_schedule_of_temperatures_stays_above_0():
    with pytest.raises(ValidationError, match="schedule reaches 0"):
        ScheduledTemperature(schedule=LinearSchedule(initial=4.0, final=0.0))
