import pytest

from asnn_goose.config_recorded import RECORDED_VERSIONS
from asnn_goose.errors import ConfigError
from asnn_goose.presets import load_recipe, recipe_yaml
from asnn_goose.scales import TEACHER_WIDTHS

TRAINED = [version for version in RECORDED_VERSIONS if version not in ("v4", "v5")]


@pytest.mark.parametrize("version", TRAINED)
@pytest.mark.parametrize("scale", ["pocket", "smollm2"])
def test_a_recorded_recipe_keeps_its_method_at_every_scale(version, scale):
    full, scaled = load_recipe(version, []), load_recipe(version, [f"scale={scale}"])
    assert (scaled.scale, scaled.teacher.name) == (scale, scale)
    assert scaled.spikes == full.spikes
    assert scaled.student.layers == full.student.layers
    assert scaled.objective.temperature == full.objective.temperature
    for name in ("hidden_alignment", "feature_dynamics", "semantic"):
        assert (getattr(scaled.objective, name) is None) == (getattr(full.objective, name) is None)
    assert scaled.training.accumulation == full.training.accumulation
    assert scaled.recorded == full.recorded


def test_pocket_scale_divides_what_counts_in_steps_and_the_width():
    recipe = load_recipe("v14.3", ["scale=pocket"])
    training = recipe.training
    assert (recipe.student.width, training.steps, training.warmup_steps) == (192, 280, 4)
    assert (training.evaluation_interval, training.early_stopping.patience_steps) == (12, 32)
    assert recipe.objective.feature_dynamics.warmup_steps == 20
    assert load_recipe("v6", ["scale=pocket"]).training.warmup_steps == 0


@pytest.mark.parametrize("scale", ["pocket", "smollm2"])
def test_spikes_that_are_compared_with_the_teachers_channels_are_as_many(scale, teacher):
    recipe = load_recipe("v15r", [f"scale={scale}"])
    assert recipe.objective.semantic is not None
    assert recipe.student.width == TEACHER_WIDTHS[scale]
    assert TEACHER_WIDTHS["pocket"] == teacher.model.config.hidden_size


def test_other_overrides_change_what_a_scale_has_made_in_any_order():
    first = load_recipe("v9", ["scale=pocket", "training.steps=7"])
    assert first == load_recipe("v9", ["training.steps=7", "scale=pocket"])
    assert (first.training.steps, first.student.width) == (7, 80)


def test_a_resolved_recipe_is_not_scaled_again(tmp_path):
    recipe = load_recipe("v9", ["scale=pocket"])
    (tmp_path / "config.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "config.yaml"), []) == recipe


def test_what_cannot_be_scaled_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"^scale: expected one of full, pocket, smollm2, got 'tiny'$"):
        load_recipe("v9", ["scale=tiny"])
    with pytest.raises(ConfigError, match=r"^scale=pocket is for recipes of a wkv student and a budget in steps"):
        load_recipe("convert-smollm2", ["scale=pocket"])
