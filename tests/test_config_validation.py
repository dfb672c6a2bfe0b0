import pytest
from pydantic import ValidationError

from asnn_goose.config_validation import RecordedGates, ValidationOptions


def test_the_recorded_gates_are_those_of_v15():
    gates = RecordedGates()
    assert (gates.dead_fraction, gates.saturated_fraction) == (0.05, 0.10)
    assert (gates.mutual_information_bits, gates.cka, gates.firing_rate) == (0.1, 0.3, (0.2, 0.6))


def test_the_default_null_can_reject_at_the_level_that_is_asked_for():
    options = ValidationOptions()
    # The smallest p there can be is 1 / (1 + permutations).
    assert 1 / (1 + options.permutations) < options.sound.null_p


@pytest.mark.parametrize("field", ["permutations", "bins", "calibration_rows", "components", "greatest_lag"])
def test_nothing_is_looked_at_zero_times(field):
    with pytest.raises(ValidationError, match="greater than or equal to"):
        ValidationOptions(**{field: 0})


def test_options_read_back_from_json_are_the_same():
    options = ValidationOptions(seed=3, window=64)
    assert ValidationOptions.model_validate_json(options.model_dump_json()) == options
