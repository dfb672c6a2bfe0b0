from itertools import permutations

import pytest

from asnn_goose.config_text import PydocText, TeacherSamples
from asnn_goose.errors import ConfigError
from asnn_goose.overrides import EXCLUSIVE, merge_overrides
from asnn_goose.presets import load_recipe

RECIPE = {
    "data": {
        "name": "wikitext",
        "subset": "raw",
        "documents": "line",
        "rows": {"kind": "packed"},
        "held_out_fraction": 0.1,
    },
    "student": {"mixer": "wkv", "width": 64},
    "spikes": {"threshold": {"kind": "learned", "alpha": 0.7}},
    "training": {"steps": 100, "batch_size": 4, "early_stopping": {"patience_steps": 5}},
}


def test_an_override_sets_one_value():
    assert merge_overrides(RECIPE, {"student.width": 32})["student"] == {"mixer": "wkv", "width": 32}


def test_the_recipe_itself_is_left_alone():
    merge_overrides(RECIPE, {"spikes.threshold.kind": "fixed", "data.path": "x"})
    assert RECIPE["spikes"] == {"threshold": {"kind": "learned", "alpha": 0.7}}
    assert RECIPE["data"]["subset"] == "raw"


def test_missing_sections_are_made():
    found = merge_overrides({}, {"objective.temperature.value": 3})["objective"]
    assert found == {"temperature": {"kind": "fixed", "value": 3}}


def test_a_null_section_is_made():
    merged = merge_overrides({"training": {"early_stopping": None}}, {"training.early_stopping.min_delta": 0.5})
    assert merged["training"]["early_stopping"] == {"min_delta": 0.5}


def test_a_made_section_is_the_default_choice_of_its_union():
    assert merge_overrides({}, {"spikes.threshold.alpha": 2.0})["spikes"]["threshold"] == {
        "kind": "fixed",
        "alpha": 2.0,
    }
    assert merge_overrides({}, {"evaluation.window": 8})["evaluation"] == {"kind": "standard", "window": 8}


def test_a_kind_drops_the_fields_of_the_old_choice():
    assert merge_overrides(RECIPE, {"spikes.threshold.kind": "fixed"})["spikes"]["threshold"] == {"kind": "fixed"}


def test_a_kind_keeps_what_overrides_give_in_any_order():
    overrides = [("spikes.threshold.alpha", 3.0), ("spikes.threshold.kind", "fixed"), ("spikes.levels", 2)]
    for order in permutations(overrides):
        merged = merge_overrides(RECIPE, dict(order))
        assert merged["spikes"] == {"threshold": {"kind": "fixed", "alpha": 3.0}, "levels": 2}


@pytest.mark.parametrize("key", ["name", "path"])
def test_a_new_source_keeps_only_what_is_done_with_text(key):
    merged = merge_overrides(RECIPE, {"data.text_field": "body", f"data.{key}": "other"})
    assert merged["data"] == {"rows": {"kind": "packed"}, "held_out_fraction": 0.1, key: "other", "text_field": "body"}


SAMPLES = {"data": {"source": "teacher_samples", "tokens": 99, "prompts": {"name": "wikitext", "subset": "raw"}}}


def test_another_kind_of_source_drops_all_of_the_old_one():
    assert merge_overrides(RECIPE, {"data.source": "mixture", "data.parts": []})["data"] == {
        "source": "mixture",
        "parts": [],
    }
    assert merge_overrides(SAMPLES, {"data.name": "pydoc"})["data"] == {"name": "pydoc"}


def test_new_prompts_drop_the_old_ones_only():
    merged = merge_overrides(SAMPLES, {"data.prompts.path": "x"})["data"]
    assert merged == {"source": "teacher_samples", "tokens": 99, "prompts": {"path": "x"}}


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.source=teacher_samples", "data.prompts.name=pydoc", "data.length=64"],
        ["data.prompts={name: pydoc}", "data.source=teacher_samples", "data.length=64"],
        ["data={source: teacher_samples, prompts: {name: pydoc}, length: 64}"],
    ],
)
def test_a_shipped_recipe_takes_text_of_its_teacher(overrides):
    expected = TeacherSamples(prompts=PydocText(), length=64)
    assert load_recipe("quickstart", overrides).data == expected


def test_a_shipped_recipe_takes_a_mixture():
    parts = "[{weight: 1, text: {name: pocket}}, {weight: 3, text: {source: teacher_samples, prompts: {path: x}}}]"
    data = load_recipe("quickstart", ["data.source=mixture", f"data.parts={parts}", "data.held_out_from=1"]).data
    kinds = [type(part.text).__name__ for part in data.parts]
    assert (kinds, data.held_out_from) == (["PocketText", "TeacherSamples"], 1)


@pytest.mark.parametrize(
    "other", [{"data": {"path": "a.txt"}}, {"data.path": "a.txt"}, {"data.parts": []}, {"data.name": "pocket"}]
)
def test_other_text_drops_the_weights_of_the_old_parts(other):
    stages = [{"share": 1}, {"share": 2, "part_weights": [1, 0]}, {"share": 3, "part_weights": [1, 2]}]
    recipe = {"data": {"source": "mixture", "parts": [1, 2]}, "stages": stages}
    assert merge_overrides(recipe, other)["stages"] == [{"share": 1}, {"share": 2}, {"share": 3}]
    assert merge_overrides(recipe, {"data.held_out_from": 1})["stages"] == stages
    given = [{"share": 1, "part_weights": [3]}]
    assert merge_overrides(recipe, {**other, "stages": given})["stages"] == given


def test_a_new_budget_drops_the_old_one_only():
    training = merge_overrides(RECIPE, {"training.tokens": 5})["training"]
    assert training == {"tokens": 5, "batch_size": 4, "early_stopping": {"patience_steps": 5}}


def test_a_mixer_keeps_the_fields_that_it_has():
    recipe = {"student": {"mixer": "other", "width": 64, "field_of_other": 1}}
    assert merge_overrides(recipe, {"student.mixer": "wkv"})["student"] == {"mixer": "wkv", "width": 64}


def test_a_mapping_replaces_its_section():
    new = {"kind": "fixed", "alpha": 3}
    assert merge_overrides(RECIPE, {"spikes.threshold": new})["spikes"] == {"threshold": new}


def test_a_key_inside_a_given_mapping_wins_in_any_order():
    overrides = [("spikes.threshold.alpha", 5.0), ("spikes.threshold", {"kind": "fixed", "alpha": 3})]
    for order in permutations(overrides):
        assert merge_overrides(RECIPE, dict(order))["spikes"]["threshold"] == {"kind": "fixed", "alpha": 5.0}


@pytest.mark.parametrize("pair", EXCLUSIVE)
def test_overrides_that_exclude_each_other_are_refused(pair):
    with pytest.raises(ConfigError, match="exclude each other"):
        merge_overrides(RECIPE, dict.fromkeys(pair, 1))


def test_a_path_through_a_value_is_refused():
    with pytest.raises(ConfigError, match=r'student\.mixer is "wkv", which has no keys'):
        merge_overrides(RECIPE, {"student.mixer.kind": 3})
