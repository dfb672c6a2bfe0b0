import pytest
from pydantic import ValidationError

from asnn_goose.config_objective import Activity, Objective


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
