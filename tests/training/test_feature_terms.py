import pytest
import torch
from torch import nn

from asnn_goose.config import Recipe
from asnn_goose.config_objective import Objective
from asnn_goose.errors import ConfigError, TeacherError
from asnn_goose.evaluation.student import site_encoders
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.models.build import build_student
from asnn_goose.objectives.layer_maps import Depths
from asnn_goose.training.feature_terms import (
    FeatureSetting,
    FeatureTerms,
    build_features,
    check_features,
    feature_setting,
    show_spikes,
)

WIDTH, OTHER = 16, 24
LEARNED = {"loss": "mse", "layer_map": {"kind": "learned"}, "projector": {"kind": "linear"}}
EVERYTHING = {
    "hidden_alignment": {"layer_map": {"kind": "uniform"}, "introduce_steps": 4},
    "feature_dynamics": {"kind": "cka", "warmup_steps": 3},
    "semantic": {"begin_step": 2, "full_step": 4},
}


def terms(widths: tuple[int, int] = (WIDTH, WIDTH), **objective: object) -> FeatureTerms:
    """The terms of an objective for a student of three blocks and a teacher of four."""
    head = LinearHead(torch.randn(29, widths[1], dtype=torch.float64))
    setting = FeatureSetting(Depths(3, 4), widths, head, nn.LayerNorm(widths[1]).double())
    return FeatureTerms(Objective.model_validate(objective, strict=False), setting, seed=0).double()


def asked(small_recipe, student=None, **objective: object) -> Recipe:
    """A small recipe with this objective."""
    base = small_recipe(student=student or {}).model_dump(mode="json")
    return Recipe.model_validate({**base, "objective": objective}, strict=False)


def test_the_teacher_shows_what_some_term_needs_and_no_more():
    assert terms(hidden_alignment={"layer_map": {"kind": "last", "count": 1}}).states == (4,)
    # Blocks 2 and 3 of the teacher, whose changes lie between states 2, 3 and 4.
    assert terms(feature_dynamics={"kind": "cka"}).states == (2, 3, 4)
    assert terms(feature_dynamics={"kind": "prediction", "layers": 2}).states == (2,)
    assert terms(**EVERYTHING).states == (1, 2, 3, 4)


def test_weights_follow_the_step_and_what_is_off_stays_at_0():
    made = terms(**EVERYTHING)
    seen = []
    for done, off in ((0, False), (3, False), (4, False), (9, True)):
        made.reach(done, off)
        seen.append([float(level) for level in made._levels])
    assert seen == [[0.25, 0.0, 0.0], [1.0, 1.0, 0.5], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]
    assert made.figures() == {"dynamics_share": torch.zeros(())}
    assert terms(hidden_alignment=LEARNED).figures() == {}


def test_nothing_of_the_teacher_is_a_parameter_and_everything_else_has_a_name():
    made = terms((WIDTH, OTHER), hidden_alignment=LEARNED, feature_dynamics={"kind": "prediction"})
    names = {name for name, _ in made.named_parameters()}
    assert names == {f"alignment.projectors.{n}.weight" for n in range(3)} | {
        f"alignment.mixtures.{n}.logits" for n in (1, 2, 3)
    }


def test_what_a_stage_learned_goes_on_in_the_next_where_it_learns_the_same():
    first, second, other = (terms((WIDTH, width), hidden_alignment=LEARNED) for width in (OTHER, OTHER, 32))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter += 1.0
    second.continue_from(first)
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), second.parameters(), strict=True))
    before = other.alignment.projectors[0].weight.clone()
    for earlier in (None, first, terms(feature_dynamics={"kind": "cka"})):
        other.continue_from(earlier)
    assert torch.equal(other.alignment.projectors[0].weight, before)


def test_a_student_of_other_depth_and_width_is_seen_beside_its_teacher(small_recipe, teacher):
    setting = feature_setting(asked(small_recipe, {"layers": 3}), teacher)
    assert (setting.depths, setting.widths) == (Depths(3, 4), (32, 256))
    base = small_recipe().model_dump(mode="json")
    converted = Recipe.model_validate({**base, "student": {"mixer": "goose", "keep_layers": 2}}, strict=False)
    setting = feature_setting(converted, teacher)
    assert (setting.depths, setting.widths) == (Depths(2, 4, (0, 3)), (256, 256))


def test_terms_that_do_not_fit_the_two_models_are_refused_in_one_line(small_recipe, teacher):
    uniform, given = {"kind": "uniform"}, {"kind": "given", "states": [1, 9]}
    with pytest.raises(ConfigError, match="compares 32 channels of the student with 256 of the teacher"):
        check_features(asked(small_recipe, hidden_alignment={"layer_map": uniform}), teacher)
    with pytest.raises(ConfigError, match=r"states=\[1, 9\]: give one state for each of the student's 2 blocks"):
        check_features(asked(small_recipe, hidden_alignment={"loss": "cka", "layer_map": given}), teacher)
    with pytest.raises(ConfigError, match=r"give student\.width=256"):
        check_features(asked(small_recipe, semantic={}), teacher)
    with pytest.raises(ConfigError, match=r"objective.feature_dynamics.pairs names the blocks \[0, 4\]"):
        check_features(asked(small_recipe, feature_dynamics={"kind": "cka", "pairs": [[0, 4]]}), teacher)
    check_features(asked(small_recipe), teacher)
    assert build_features(Objective(), asked(small_recipe), teacher) is None


def test_a_teacher_whose_stream_is_not_known_is_refused(small_recipe, teacher, monkeypatch):
    recipe = asked(small_recipe, hidden_alignment={"loss": "cka", "layer_map": {"kind": "uniform"}})
    monkeypatch.setattr(teacher.model.config, "model_type", "bloom")
    with pytest.raises(TeacherError, match="is a bloom model: hidden states are seen in gpt2, llama"):
        check_features(recipe, teacher)


def test_only_compared_blocks_show_their_spikes(small_recipe, teacher):
    recipe = small_recipe(student={"layers": 3, "width": 16})
    student = build_student(recipe.student, recipe.spikes, teacher, 0)
    for features, expected in ((terms(semantic={"pairs": [[1, 0]]}), {"layer_1.k", "layer_1.v"}), (None, set())):
        show_spikes(student, features)
        assert {name for name, encoder in site_encoders(student).items() if encoder.shows_spikes} == expected
    assert student.model(input_ids=torch.arange(4).reshape(1, 4)).sent is None
