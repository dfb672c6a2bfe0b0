import json

import pytest

from asnn_goose.config_text import PydocText
from asnn_goose.errors import ConfigError
from asnn_goose.presets import (
    load_recipe,
    parse_yaml,
    recipe_hash,
    recipe_name,
    recipe_names,
    recipe_schema,
    recipe_yaml,
)

SMALLEST = "data: {name: pydoc}\ntraining: {steps: 1}\n"


def refusal(name_or_path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(name_or_path), overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_parses_and_says_what_it_is_for(name):
    assert load_recipe(name, []).description


def test_quickstart_and_wikitext2_are_shipped():
    assert {"quickstart", "wikitext2"} <= set(recipe_names())


def test_quickstart_needs_no_hub():
    recipe = load_recipe("quickstart", [])
    assert recipe.teacher.name == recipe.data.name == "pocket"


def test_a_larger_teacher_comes_from_the_package_registry():
    recipe = load_recipe("smollm2-pydoc", [])
    assert recipe.teacher.name == "smollm2"
    assert isinstance(recipe.data, PydocText)


def test_wikitext2_has_the_recorded_number_of_parameters():
    student = load_recipe("wikitext2", []).student
    embeddings = (50257 + student.max_positions) * student.width
    block = 4 * student.width**2 + 8 * student.width**2 + 4 * student.width + 4 * student.width + 2
    assert embeddings + student.layers * block + 2 * student.width == 74_215_690


@pytest.mark.parametrize("name", recipe_names())
def test_resolved_yaml_reads_back_as_the_same_recipe(name, tmp_path):
    recipe = load_recipe(name, ["description='on: 3e-4 # x'", "training.learning_rate=1.7e-9"])
    (tmp_path / "config.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "config.yaml"), []) == recipe


def test_resolved_yaml_keeps_the_order_of_sections():
    keys = list(parse_yaml(recipe_yaml(load_recipe("quickstart", [])), "it"))
    sections = ["description", "scale", "teacher", "data", "student", "spikes", "objective", "training", "stages"]
    assert keys == [*sections, "curriculum", "evaluation", "controls", "samples", "recorded"]


def test_the_hash_follows_the_values_and_not_their_notation():
    one = load_recipe("quickstart", ["training.learning_rate=3e-4", "training.seed=7"])
    same = load_recipe("quickstart", ["training.seed=7", "training.learning_rate=0.0003"])
    other = load_recipe("quickstart", ["training.seed=8"])
    assert recipe_hash(one) == recipe_hash(same) != recipe_hash(other)


def test_the_schema_describes_each_section():
    schema = recipe_schema()
    assert {"teacher", "data", "training"} <= set(schema["properties"])
    assert json.dumps(schema)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e-3", 1e-3),
        ("0.001", 1e-3),
        ("1_000", 1000),
        ("017", 17),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("1:30", "1:30"),
        ("1M", "1M"),
        ("true", True),
        ("null", None),
        ("", None),
        ("[k, v]", ["k", "v"]),
        ("{kind: fixed, value: 3}", {"kind": "fixed", "value": 3}),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    parsed = parse_yaml(text, "it")
    assert (parsed, type(parsed)) == (value, type(value))


def test_a_file_is_a_recipe(tmp_path):
    for name in ("mine.yaml", "mine.yml", "mine"):
        (tmp_path / name).write_text(SMALLEST, encoding="utf-8")
        assert load_recipe(str(tmp_path / name), []).training.steps == 1


def test_runs_are_named_after_the_recipe():
    assert recipe_name("quickstart") == "quickstart"
    assert recipe_name("my/own.recipe.yaml") == "own.recipe"


def test_the_later_of_two_equal_overrides_counts():
    assert load_recipe("quickstart", ["training.seed=1", "training.seed=2"]).training.seed == 2


def test_an_unknown_recipe_gets_the_nearest_name():
    line = refusal("quikstart")
    assert "quikstart" in line
    assert "did you mean quickstart?" in line
    assert "asnn-goose presets" in line


def test_a_missing_file_is_named(tmp_path):
    assert "gone.yaml" in refusal(tmp_path / "gone.yaml")


def test_broken_yaml_names_its_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("data:\n  name: [pydoc\n", encoding="utf-8")
    assert "bad.yaml, line 3" in refusal(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    "content", [b"", b"- a\n", b"text", b"a: 1\na: 2\n", b"\xff\xfe\x00", b"a: !!python/name:x y\n"]
)
def test_files_that_are_no_recipe_are_refused(content, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(content)
    assert "bad.yaml" in refusal(tmp_path / "bad.yaml")


@pytest.mark.parametrize("override", ["training.steps", "=3", "a..b=3", ".a=3", "teacher.name=@x", "data={"])
def test_an_override_must_be_a_path_and_yaml(override):
    assert repr(override) in refusal("quickstart", override)


@pytest.mark.parametrize("value", [".inf", ".nan", "2026-01-01", "!!set {a}", "&a [*a]", "!!binary aGk="])
def test_what_json_cannot_hold_is_refused(value):
    assert "training.learning_rate" in refusal("quickstart", f"training.learning_rate={value}")
