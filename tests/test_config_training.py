import json

import pytest
from pydantic import ValidationError

from asnn_goose.config import Recipe
from asnn_goose.config_training import AlignStage, DistillStage
from asnn_goose.errors import ConfigError
from asnn_goose.presets import load_recipe

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


SITES = "'k', 'v', 'mixer_in', 'gate_mid', 'mixer_out', 'ffn_in', 'ffn_mid' or 'head_in'"
RAMPS = {
    "{sites: [k], tokens: 100000000}": (
        "stages.0.ramp.tokens=100000000 is longer than its stage, which has 458,752 tokens: give 458752 or fewer, or "
        "raise the budget"
    ),
    "{sites: [q]}": f'stages[0].ramp.sites[0]: expected {SITES}, got "q" (and 1 more)',
    "{sites: [k, [k, v]]}": "stages raise the site k more than once: name it in one ramp, once",
}


@pytest.mark.parametrize("ramp", RAMPS)
def test_a_ramp_that_cannot_be_is_refused_in_one_line(ramp):
    with pytest.raises(ConfigError) as refused:
        load_recipe("convert-pocket-spiking", [f"stages=[{{kind: distill, share: 1, ramp: {ramp}}}]"])
    assert str(refused.value) == RAMPS[ramp]


def test_a_stage_does_not_end_before_its_ramp_and_a_ramp_blends_sizes():
    ramp = "ramp: {sites: [k]}"
    with pytest.raises(ConfigError, match="exit would end the stage before its ramp"):
        load_recipe("convert-pocket", [f"stages=[{{kind: distill, share: 1, exit: {{below_ratio: 2}}, {ramp}}}]"])
    with pytest.raises(ConfigError, match=r"needs spikes\.scale=token"):
        load_recipe("convert-pocket", ["spikes.scale=none", f"stages=[{{kind: distill, share: 1, {ramp}}}]"])


BORDERS = {
    "stages=[{kind: distill, share: 1, transition: 5}]": (
        "stages.0.transition=5 leads from the objective of the stage before, and there is no distill stage before it: "
        "give 0"
    ),
    "stages=[{kind: align, share: 1}, {kind: distill, share: 1, transition: 5}]": (
        "stages.1.transition=5 leads from the objective of the stage before, and there is no distill stage before it: "
        "give 0"
    ),
    "stages=[{kind: distill, share: 1}, {kind: distill, name: b, share: 1, transition: 5}]": (
        "stages.1.transition changes numbers that training.cuda_graphs=true has recorded: set cuda_graphs to false"
    ),
    "stages=[{kind: distill, share: 1, moments: some}]": (
        "stages[0].moments: expected 'fresh' or 'kept', got \"some\""
    ),
    "stages=[{kind: distill, share: 1, exit: {plateau: {steps: 0}}}]": (
        "stages[0].exit.plateau.steps: expected a value greater than or equal to 1, got 0"
    ),
    "training.learning_rate_course=epoch": ("training.learning_rate_course: expected 'stage' or 'run', got \"epoch\""),
    "training.decay=some": "training.decay: expected 'matrices' or 'all', got \"some\"",
    "training.early_stopping={ends: all}": "training.early_stopping.ends: expected 'stage' or 'run', got \"all\"",
}


@pytest.mark.parametrize("override", BORDERS)
def test_a_border_that_cannot_be_is_refused_in_one_line(override):
    with pytest.raises(ConfigError) as refused:
        load_recipe("convert-pocket", ["training.cuda_graphs=true", override])
    assert str(refused.value) == BORDERS[override]


@pytest.mark.parametrize("sublayers", ["mixers", "feed_forward"])
def test_a_stream_of_the_students_own_needs_both_sublayers(sublayers):
    with pytest.raises(ValidationError, match=f"inputs=student needs sublayers=all, got {sublayers}"):
        AlignStage(kind="align", share=1, inputs="student", sublayers=sublayers)
