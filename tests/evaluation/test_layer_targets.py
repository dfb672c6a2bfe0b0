import pytest

from asnn_goose.errors import ConfigError
from asnn_goose.evaluation.layer_targets import layer_targets


def test_blocks_of_equal_depth_stand_for_each_other():
    layers = layer_targets(4, 4)
    assert (layers.given, layers.made) == ({0: 0, 1: 1, 2: 2, 3: 3}, {0: 1, 1: 2, 2: 3, 3: 4})


def test_five_blocks_stand_for_twelve_as_recorded():
    assert layer_targets(5, 12).made == {0: 2, 1: 5, 2: 7, 3: 10, 4: 12}


def test_a_map_names_the_teachers_blocks_and_limits_what_is_looked_at():
    layers = layer_targets(5, 12, {0: 2, 2: 7, 4: 11})
    assert layers.made == {0: 3, 2: 8, 4: 12}
    assert layers.covers(2, "k")
    assert not layers.covers(1, "k")


@pytest.mark.parametrize(
    ("site", "state"), [("k", 2), ("v", 2), ("mixer_in", 2), ("mixer_out", 5), ("ffn_mid", 5), ("head_in", 12)]
)
def test_a_site_is_asked_about_what_its_block_is_given_or_makes(site, state):
    assert layer_targets(5, 12).state_of(1, site) == state


@pytest.mark.parametrize(("layer_map", "said"), [({5: 0}, "0 to 4"), ({0: 12}, "0 to 11"), ({}, "names no block")])
def test_a_map_that_leads_nowhere_is_refused(layer_map, said):
    with pytest.raises(ConfigError, match=said):
        layer_targets(5, 12, layer_map)
