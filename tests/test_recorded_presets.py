"""The shipped presets of the recorded line against what the record says of them."""

from types import SimpleNamespace

import pytest
import torch

from asnn_goose.config_recorded import RECORDED_VERSIONS
from asnn_goose.models.build import student_config
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.presets import load_recipe, recipe_names

TRAINED = [version for version in RECORDED_VERSIONS if version not in ("v4", "v5")]
GPT2 = SimpleNamespace(
    vocabulary_size=50_257, name="gpt2", vocabulary_hash="",
    tokenizer=SimpleNamespace(bos_token_id=50_256, eos_token_id=50_256, pad_token_id=None),
)  # fmt: skip
MILLIONS = {
    "v6": 16.09, "v9": 22.32, "v9.1": 30.03, "v11a": 37.11, "v14.1": 41.61, "v10-512x8": 51.06, "v14.3": 74.22,
    "v14.2": 114.68,
}  # fmt: skip


def parameters(version):
    recipe = load_recipe(version, [])
    with torch.device("meta"):
        student = GooseForCausalLM(student_config(recipe.student, recipe.spikes, GPT2))
    return sum(parameter.numel() for parameter in student.parameters())


def test_every_version_that_trained_is_a_preset_that_names_it():
    assert set(TRAINED) <= set(recipe_names())
    assert all(load_recipe(version, []).recorded.version == version for version in TRAINED)


@pytest.mark.parametrize("version", [version for version in TRAINED if version != "v11.2a"])
def test_a_student_has_exactly_the_recorded_parameters(version):
    # v6 has one threshold factor more in each of its four layers.
    more = 4 if version == "v6" else 0
    assert parameters(version) == load_recipe(version, []).recorded.size.parameters + more


@pytest.mark.parametrize(("version", "millions"), MILLIONS.items())
def test_sizes_round_to_the_known_ones(version, millions):
    assert round(parameters(version) / 1e6, 2) == millions


@pytest.mark.parametrize("version", TRAINED)
def test_recorded_particulars_are_those_of_the_notebooks(version):
    recipe = load_recipe(version, [])
    training, student = recipe.training, recipe.student
    assert (training.decay, training.weight_decay, training.betas) == ("all", 0.01, (0.9, 0.999))
    assert (training.precision, training.clip_norm, training.learning_rate_floor) == ("fp16", 1.0, 0.0)
    assert training.warmup_from_zero
    assert training.learning_rate_course == "run"
    assert training.accumulation == (1 if version in ("v6", "v7", "v8", "v9", "v9.1") else 2)
    assert (student.decay_init, student.mix_init, student.recurrence) == ("recorded", "recorded", "exact")
    assert recipe.evaluation.kind == recipe.data.rows.kind == "recorded"
    assert recipe.spikes.surrogate.kind == "recorded_ste"


def test_ctkd_learns_inside_adamw_and_the_clipped_norm():
    temperatures = [load_recipe(version, []).objective.temperature for version in ("v12.1", "v13.1", "v14", "v14.3")]
    assert {temperature.kind for temperature in temperatures} == {"ctkd"}
    assert {temperature.optimizer for temperature in temperatures} == {"recorded"}
    assert [temperature.warmup_share for temperature in temperatures] == [0.2, 0.2, 0.2, 0.25]


def test_v11_1a_is_what_its_review_asks_for():
    recipe = load_recipe("v11.1a", [])
    assert (recipe.student.width, recipe.student.layers) == (512, 8)
    assert recipe.training.evaluation_interval == 300
    temperature = recipe.objective.temperature
    assert (temperature.kind, temperature.lower, temperature.upper) == ("learned", 1.0, 10.0)
    assert (temperature.learning_rate, temperature.anchor.target) == (0.01, 2.0)
    assert recipe.stages == ()
    assert recipe.spikes.amplitude == "scalar"
    assert recipe.objective.hidden_alignment is None
