import math

import pytest
from pydantic import ValidationError

from asnn_goose.config_recorded import RECORDED_CAP, RECORDED_VERSIONS, Recorded, recorded_facts, recorded_line
from asnn_goose.errors import ConfigError
from asnn_goose.presets import RECIPES, load_recipe, recipe_schema, recipe_yaml

SMALLEST = "data: {name: pydoc}\ntraining: {steps: 1}\nrecorded: v14.3\n"
GPT2_WORDS, POSITIONS = 50_257, 256


@pytest.fixture
def recipe_file(tmp_path):
    (tmp_path / "mine.yaml").write_text(SMALLEST)
    return str(tmp_path / "mine.yaml")


def test_each_version_has_one_file_and_no_file_is_left_over():
    files = {entry.name.removesuffix(".yaml") for entry in RECIPES.joinpath("recorded").iterdir()}
    assert files == set(RECORDED_VERSIONS)
    assert [facts.version for facts in recorded_line()] == list(RECORDED_VERSIONS)


@pytest.mark.parametrize("version", [name for name in RECORDED_VERSIONS if recorded_facts(name).size])
def test_recorded_parameters_follow_from_the_shape(version):
    size = recorded_facts(version).size
    # Amplitudes: none before v7, two scalars a layer since, of the v11 line alpha and amplitude by channel.
    factors = {"v4": 0, "v5": 0, "v6": 0, "v11": 4 * size.width, "v11.1": 4 * size.width, "v11a": 4 * size.width}
    projections, feed_forward, vectors = 4 * size.width**2, 8 * size.width**2, 8 * size.width
    layer = projections + feed_forward + vectors + factors.get(version, 2)
    alphas = {"v4": 1, "v5": 1, "v6": 1}
    embeddings = (GPT2_WORDS + POSITIONS) * size.width
    assert size.parameters == embeddings + size.layers * (layer + alphas.get(version, 0)) + 2 * size.width


@pytest.mark.parametrize("facts", [facts for facts in recorded_line() if facts.trajectory], ids=lambda f: f.version)
def test_the_best_of_a_trajectory_is_the_recorded_best(facts):
    perplexity, step = min((perplexity, step) for step, perplexity in facts.trajectory)
    assert facts.best.step == step
    assert facts.best.perplexity == pytest.approx(perplexity, abs=0.05)
    assert [step for step, _ in facts.trajectory] == sorted(step for step, _ in facts.trajectory)


def test_tokens_are_steps_times_what_a_step_reads():
    taken = {facts.version: facts for facts in recorded_line() if facts.stop_step is not None}
    for version, facts in taken.items():
        rows = 8 if version in ("v6", "v7", "v8", "v9") else 16
        assert facts.tokens == facts.stop_step * rows * 256, version


def test_the_cap_is_the_exponential_of_ten():
    assert round(math.exp(10)) == RECORDED_CAP
    assert [facts.version for facts in recorded_line() if facts.is_capped] == ["v4"]


def test_a_recipe_names_a_version_and_holds_its_block(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file, [])
    assert recipe.recorded == recorded_facts("v14.3")
    (tmp_path / "config.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(str(tmp_path / "config.yaml"), []) == recipe
    assert load_recipe(recipe_file, ["recorded=v6"]).recorded.headline == 627.3


def test_an_unknown_version_is_refused_in_one_line(recipe_file):
    with pytest.raises(ConfigError, match=r'^recorded: expected a version .* v15r\), got "v99"$'):
        load_recipe(recipe_file, ["recorded=v99"])


def test_a_block_speaks_of_its_own_fields_alone():
    with pytest.raises(ValidationError, match="'minute' is no field"):
        Recorded(version="v6", status="success", lesson="", public=("minute",))


def test_editors_are_told_that_a_version_may_stand_for_its_block():
    choices = recipe_schema()["properties"]["recorded"]["anyOf"]
    assert any("v14.3" in choice.get("enum", ()) for choice in choices)
