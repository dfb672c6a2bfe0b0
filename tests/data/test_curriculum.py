from collections import Counter

import numpy as np
import pytest

from asnn_goose.config_curriculum import ExponentialPacing, LinearPacing, StepPacing
from asnn_goose.data.curriculum import Course, Phase, pacing_phases, part_ends


def test_the_recorded_parts_end_with_steps_1667_and_3333_of_5000():
    assert part_ends(StepPacing(), 5000) == (1667, 3333, 5000)
    assert part_ends(StepPacing(durations=(40.0, 30.0, 30.0)), 5000) == (2000, 3500, 5000)


def test_the_recorded_subsets_are_133_266_and_400_of_400_windows():
    phases = pacing_phases(StepPacing(), 5000, 400)
    assert phases == (Phase(0, 0, 133), Phase(1667, 0, 266), Phase(3333, 0, 400))


def test_disjoint_thirds_are_all_rows_once():
    phases = pacing_phases(StepPacing(subsets="disjoint"), 90, 400)
    assert [place for phase in phases for place in range(phase.start, phase.stop)] == list(range(400))
    assert [phase.first_step for phase in phases] == [0, 30, 60]


@pytest.mark.parametrize(
    ("pacing", "half_way"), [(LinearPacing(kind="linear", start=0.04, until=0.5), 0.52),
                             (ExponentialPacing(kind="exponential", start=0.04, until=0.5), 0.20)],
)  # fmt: skip
def test_a_pacing_grows_from_its_start_to_all_rows(pacing, half_way):
    phases = pacing_phases(pacing, 1000, 5000)

    def open_rows(step):
        return next(phase.stop for phase in reversed(phases) if phase.first_step <= step)

    # At 0, half way and the end of the rise, and after it: closed forms, rounded up to a hundredth of the rows.
    assert [open_rows(step) for step in (0, 250, 500, 999)] == [200, half_way * 5000, 5000, 5000]
    stops = [phase.stop for phase in phases]
    assert stops == sorted(set(stops))


def test_a_phase_draws_its_rows_epoch_by_epoch():
    order = np.asarray([40, 10, 30, 20, 0, 50])
    course = Course(order, (Phase(0, 0, 3), Phase(4, 0, 6)), seed=1, rows_per_step=3)
    found = course.places(np.arange(24)).tolist()
    assert [set(found[start : start + 3]) for start in (0, 3, 6, 9)] == [{40, 10, 30}] * 4
    assert [set(found[start : start + 6]) for start in (12, 18)] == [set(order.tolist())] * 2


def test_any_cursor_finds_what_a_run_from_the_start_would():
    course = Course(np.arange(100), pacing_phases(LinearPacing(kind="linear"), 40, 100), seed=1, rows_per_step=6)
    whole = course.places(np.arange(300))
    pieces = [course.places(np.arange(start, start + 2)) for start in range(0, 300, 2)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_a_stage_goes_on_where_the_run_is():
    course = Course(np.arange(100), (Phase(0, 0, 10), Phase(5, 0, 100)), seed=1, rows_per_step=6)
    later = course.of_stage(first_step=3, rows_per_step=6)
    assert np.array_equal(later.places(np.arange(60)), course.places(np.arange(18, 78)))


def test_beyond_the_budget_the_last_phase_goes_on():
    course = Course(np.arange(4), pacing_phases(StepPacing(parts=2), 2, 4), seed=0)
    assert Counter(course.places(np.arange(1, 9)).tolist()) == dict.fromkeys(range(4), 2)


def test_what_cannot_be_a_course_is_refused():
    with pytest.raises(ValueError, match="2 rows make no 3 parts"):
        pacing_phases(StepPacing(), 10, 2)
    for phases in ((), (Phase(1, 0, 2),), (Phase(0, 2, 2),), (Phase(0, 0, 5),)):
        with pytest.raises(ValueError, match="phase"):
            Course(np.arange(4), phases, seed=0)
