import json

import pytest
from pydantic import ValidationError

from asnn_goose.config import Recipe
from asnn_goose.config_training import AlignStage, DistillStage

SMALLEST = {"data": {"name": "pocket"}, "training": {"steps": 10}}


def recipe(**sections):
    return Recipe.model_validate_json(json.dumps(SMALLEST | sections))


def test_stages_are_told_apart_by_their_kind():
    stages = recipe(student={"mixer": "goose"}, stages=[{"kind": "align", "share": 1}, {"kind": "distill", "share": 3}])
    assert [type(stage) for stage in stages.stages] == [AlignStage, DistillStage]


def test_two_stages_of_one_name_are_refused():
    with pytest.raises(ValidationError, match="each its own name"):
        recipe(stages=[{"kind": "distill", "share": 1}, {"kind": "distill", "share": 1}])


def test_alignment_needs_a_mixer_that_stands_for_attention():
    with pytest.raises(ValidationError, match=r"student\.mixer=goose"):
        recipe(stages=[{"kind": "align", "share": 1}])


@pytest.mark.parametrize("share", [0, -1])
def test_a_stage_without_a_share_is_refused(share):
    with pytest.raises(ValidationError, match="greater than 0"):
        recipe(stages=[{"kind": "distill", "share": share}])


def test_the_window_of_a_stage_must_fit_the_learned_positions():
    with pytest.raises(ValidationError, match=r"student\.max_positions >= 2048"):
        recipe(stages=[{"kind": "distill", "share": 1, "window": 2048}])
