import pytest

from asnn_goose.config_features import HiddenAlignment
from asnn_goose.errors import ConfigError
from asnn_goose.objectives.layer_maps import (
    Depths,
    StatePair,
    alignment_pairs,
    chosen_pairs,
    depth_pairs,
    reading_states,
    skipped_states,
    uniform_states,
)

# The lists that the record states, by the students' and the teacher's blocks.
RECORDED_STATES = {
    (4, 12): (3, 6, 9, 12),
    (5, 12): (2, 5, 7, 10, 12),
    (6, 12): (2, 4, 6, 8, 10, 12),
    (8, 12): (2, 3, 4, 6, 8, 9, 10, 12),
}
RECORDED_PAIRS = {
    (5, 12): {0: 2, 2: 7, 4: 11},
    (6, 12): {0: 2, 2: 6, 5: 11},
    (5, 6): {0: 2, 2: 4, 4: 5},
    (5, 30): {0: 2, 2: 16, 4: 29},
    (5, 4): {0: 2, 2: 3, 4: 3},
}


def states(depths: Depths, **layer_map: object) -> list[tuple[int, ...]]:
    """The student's states and what each follows, flat."""
    options = HiddenAlignment.model_validate({"layer_map": layer_map}, strict=False)
    return [(pair.student, *pair.teacher) for pair in alignment_pairs(options, depths)]


@pytest.mark.parametrize(("depths", "expected"), RECORDED_STATES.items())
def test_uniform_states_are_the_recorded_lists(depths, expected) -> None:
    assert uniform_states(*depths) == expected


@pytest.mark.parametrize(("depths", "expected"), RECORDED_PAIRS.items())
def test_pairs_by_depth_are_the_recorded_ones(depths, expected) -> None:
    assert dict(depth_pairs(*depths, "key")) == expected


def test_pairs_by_depth_stay_within_both_models() -> None:
    for student in range(1, 40):
        for teacher in range(3, 40):
            pairs = depth_pairs(student, teacher, "key")
            assert len(pairs) == min(3, student)
            assert all(0 <= s < student and 2 <= t < teacher for s, t in pairs)
            assert len({s for s, _ in pairs}) == len(pairs)


def test_pairs_by_depth_need_a_third_block() -> None:
    with pytest.raises(ConfigError, match=r"key\.pairs=null needs a teacher of at least 3 blocks, got 2: give \[\["):
        depth_pairs(5, 2, "key")


def test_a_deeper_student_never_follows_the_embeddings() -> None:
    assert uniform_states(8, 2) == (1, 1, 1, 1, 1, 2, 2, 2)


def test_blocks_follow_the_end_of_what_they_stand_for() -> None:
    assert states(Depths(3, 6, (0, 2, 5)), kind="block") == [(1, 2), (2, 5), (3, 6)]


def test_every_nth_state_is_taken_from_the_front() -> None:
    assert states(Depths(3, 12), kind="skip", every=2) == [(1, 2), (2, 4), (3, 6)]
    assert skipped_states(Depths(5, 12), None) == (2, 4, 6, 8, 10)


def test_the_last_blocks_follow_the_last_ones() -> None:
    assert states(Depths(3, 12), kind="last") == [(1, 10), (2, 11), (3, 12)]
    assert states(Depths(3, 12), kind="last", count=1) == [(3, 12)]


def test_given_states_are_taken_as_they_are() -> None:
    recorded = [1, 2, 4, 5, 7, 8, 10, 11]
    assert states(Depths(8, 12), kind="given", states=recorded) == list(zip(range(1, 9), recorded, strict=True))
    assert states(Depths(2, 3), kind="given", states=[0, 0]) == [(1, 0), (2, 0)]


def test_a_learned_map_offers_every_block_output() -> None:
    assert states(Depths(2, 3), kind="learned") == [(1, 1, 2, 3), (2, 1, 2, 3)]


def test_embeddings_come_first_if_they_are_compared() -> None:
    options = HiddenAlignment.model_validate({"embeddings": True, "layer_map": {"kind": "uniform"}}, strict=False)
    assert alignment_pairs(options, Depths(2, 4)) == (StatePair(0, (0,)), StatePair(1, (2,)), StatePair(2, (4,)))


@pytest.mark.parametrize(
    ("layer_map", "message"),
    [
        ({"kind": "given", "states": [1, 2]}, r"states=\[1, 2\]: give one state for each of the student's 5 blocks"),
        ({"kind": "given", "states": [1, 2, 3, 4, 13]}, r"from 0 \(the embeddings' output\) to 12"),
        ({"kind": "skip", "every": 3}, "leads 5 blocks to state 15, but the teacher has 12 blocks: give every=2"),
        ({"kind": "last", "count": 6}, "takes 6 blocks, but student and teacher have 5 and 12: give count=5 or fewer"),
    ],
)
def test_a_map_that_leads_out_of_a_model_is_refused(layer_map, message) -> None:
    with pytest.raises(ConfigError, match=message):
        states(Depths(5, 12), **layer_map)


def test_a_map_that_skips_is_refused_for_a_deeper_student() -> None:
    with pytest.raises(ConfigError, match="give kind=uniform"):
        states(Depths(5, 4), kind="skip")


def test_there_is_one_weight_for_each_compared_state() -> None:
    options = HiddenAlignment.model_validate({"layer_weights": [1, 2], "layer_map": {"kind": "uniform"}}, strict=False)
    with pytest.raises(ConfigError, match="layer_weights has 2 weights for 5 compared states"):
        alignment_pairs(options, Depths(5, 12))


def test_given_pairs_name_blocks_that_exist() -> None:
    assert chosen_pairs([(4, 11)], Depths(5, 12), "key") == ((4, 11),)
    assert chosen_pairs(None, Depths(5, 12), "key") == depth_pairs(5, 12, "key")
    with pytest.raises(ConfigError, match=r"key\.pairs is empty: give"):
        chosen_pairs([], Depths(5, 12), "key")
    for pair in ((5, 0), (0, 12)):
        with pytest.raises(ConfigError, match="the student's go from 0 to 4, the teacher's to 11"):
            chosen_pairs([pair], Depths(5, 12), "key")


def test_readings_stand_at_equal_shares_of_depth() -> None:
    assert reading_states(4, Depths(8, 12)) == ((2, 3), (4, 6), (6, 9), (8, 12))
    assert reading_states(4, Depths(2, 12)) == ((1, 6), (2, 12))
    with pytest.raises(ConfigError, match="needs two blocks of each model, student and teacher have 1 and 12"):
        reading_states(4, Depths(1, 12))
