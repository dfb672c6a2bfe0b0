import pytest
import torch

from asnn_goose.config_schedules import CosineSchedule, LinearSchedule, StepSchedule
from asnn_goose.objectives.schedules import ScheduledNumbers, Span, scheduled_value

CPU = torch.device("cpu")
RISING = LinearSchedule(initial=0.0, final=1.0)


def test_a_line_and_a_cosine_have_the_recorded_forms():
    line, cosine = LinearSchedule(initial=4.0, final=1.0), CosineSchedule(initial=4.0, final=1.0)
    assert [scheduled_value(line, step, 300) for step in (0, 100, 300)] == pytest.approx([4.0, 3.0, 1.0])
    # 1 + 3 (1 + cos(pi / 3)) / 2 at a third of the way.
    assert [scheduled_value(cosine, step, 300) for step in (0, 100, 300)] == pytest.approx([4.0, 3.25, 1.0])


def test_values_of_steps_change_at_the_recorded_places():
    thirds, stages = StepSchedule(values=(1.0, 1.5, 2.0)), StepSchedule(values=(4.0, 2.5, 1.5), at=(0.4, 0.7))
    assert [scheduled_value(thirds, step, 5000) for step in (1666, 1667, 3332, 3333)] == [1.0, 1.5, 1.5, 2.0]
    assert [scheduled_value(stages, step, 1000) for step in (399, 400, 699, 700)] == [4.0, 2.5, 2.5, 1.5]


def test_a_course_may_be_stated_in_steps():
    course = LinearSchedule(initial=0.0, final=0.08, begin=400.0, end=800.0, unit="steps")
    assert [scheduled_value(course, step, 7000) for step in (0, 400, 600, 800, 6999)] == pytest.approx(
        [0.0, 0.0, 0.04, 0.08, 0.08]
    )


def test_a_number_stays_a_number_and_a_schedule_keeps_its_place():
    numbers = ScheduledNumbers(Span(0, 10, 10), CPU)
    assert numbers.follow("fixed", 0.5) == 0.5
    weight = numbers.follow("rising", RISING)
    numbers.reach(5)
    assert weight.item() == pytest.approx(0.5)
    assert numbers.figures()["rising"] is weight


def test_a_later_stage_goes_on_where_the_one_before_ended():
    numbers = ScheduledNumbers(Span(30, 10, 40), CPU)
    weight = numbers.follow("rising", RISING)
    for done, expected in ((0, 0.75), (4, 0.85), (10, 1.0), (99, 1.0)):
        numbers.reach(done)
        assert weight.item() == pytest.approx(expected)


def test_steps_that_the_device_knows_to_be_lost_do_not_count():
    numbers = ScheduledNumbers(Span(0, 10, 10), CPU)
    weight = numbers.follow("rising", RISING)
    numbers.reach(7, torch.tensor(3))
    assert weight.item() == pytest.approx(0.4)


def test_a_schedule_without_a_span_is_a_mistake():
    with pytest.raises(ValueError, match="rising is scheduled: give the step the span"):
        ScheduledNumbers(None, CPU).follow("rising", RISING)
