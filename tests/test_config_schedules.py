import pytest
from pydantic import TypeAdapter, ValidationError

from asnn_goose.config_schedules import LinearSchedule, StepSchedule, Weight, number_tag, numbers_of

WEIGHT = TypeAdapter(Weight)


def test_a_weight_is_a_number_or_a_schedule_and_survives_its_own_dump():
    for given in (0.5, {"kind": "linear", "initial": 0.0, "final": 1.0}, {"kind": "step", "values": [1.0, 0.5]}):
        made = WEIGHT.validate_python(given)
        assert WEIGHT.validate_json(WEIGHT.dump_json(made)) == made


def test_numbers_of_a_schedule_are_those_it_goes_between_or_through():
    assert numbers_of(0.5) == (0.5,)
    assert numbers_of(LinearSchedule(initial=1.0, final=0.25)) == (1.0, 0.25)
    assert numbers_of(StepSchedule(values=(4.0, 2.5, 1.5))) == (4.0, 2.5, 1.5)


@pytest.mark.parametrize(("value", "tag"), [(1, "number"), (LinearSchedule(initial=0.0, final=1.0), "linear"),
                                            ({"kind": "step"}, "step"), ({}, None), ({"kind": 3}, None)])  # fmt: skip
def test_a_value_is_told_by_what_it_is(value, tag):
    assert number_tag(value) == tag


@pytest.mark.parametrize("course", [{"begin": 0.5, "end": 0.5}, {"begin": 1.0}, {"end": 1.5},
                                    {"unit": "steps", "begin": 300.0, "end": 200.0}])  # fmt: skip
def test_a_course_that_ends_before_it_begins_or_after_the_budget_is_refused(course):
    with pytest.raises(ValidationError, match="begin < end"):
        LinearSchedule(initial=0.0, final=1.0, **course)


@pytest.mark.parametrize("places", [{"at": (0.5,)}, {"at": (0.6, 0.4)}, {"at": (0.4, 1.2)}, {"unit": "steps"}])
def test_places_of_steps_are_one_fewer_than_values_and_ascend(places):
    with pytest.raises(ValidationError, match="give 2 ascending places"):
        StepSchedule(values=(4.0, 2.5, 1.5), **places)
