import pytest
from pydantic import ValidationError

from asnn_goose.config_objective import Activity, JensenShannon, Objective
from asnn_goose.config_schedules import LinearSchedule
from asnn_goose.config_temperature import LearnedTemperature


def test_an_objective_of_nothing_is_refused():
    with pytest.raises(ValidationError, match="raise one of them"):
        Objective(kl_weight=0.0)
    assert Objective(kl_weight=0.0, cross_entropy_weight=1.0).cross_entropy_weight == 1.0


@pytest.mark.parametrize("events", [0.0, 1.0, -0.5])
def test_wanted_activity_is_a_share_of_activations(events):
    with pytest.raises(ValidationError, match="events"):
        Activity(events=events)
    with pytest.raises(ValidationError, match="sites"):
        Activity(events=0.5, sites={"k": events})


def test_a_schedule_that_never_leaves_0_minimizes_nothing():
    with pytest.raises(ValidationError, match="raise one of them"):
        Objective(kl_weight=LinearSchedule(initial=0.0, final=0.0))
    assert Objective(kl_weight=LinearSchedule(initial=0.0, final=1.0)).cross_entropy_weight == 0.0


def test_a_temperature_learns_from_nothing_where_the_divergence_has_no_weight():
    with pytest.raises(ValidationError, match="nothing to learn from"):
        Objective(kl_weight=0.0, cross_entropy_weight=1.0, temperature=LearnedTemperature())


def test_only_a_mixture_has_a_share_strictly_between_both():
    assert JensenShannon().share == 0.5
    with pytest.raises(ValidationError, match="share"):
        JensenShannon(share=1.0)
    with pytest.raises(ValidationError, match="share"):
        Objective(divergence={"kind": "forward_kl", "share": 0.5})
