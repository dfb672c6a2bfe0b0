import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from asnn_goose.config import Recipe
from asnn_goose.config_text import HubText, LocalText, PydocText
from asnn_goose.config_training import TrainingBySteps, TrainingByTokens

SMALLEST = {"data": {"name": "pydoc"}, "training": {"steps": 10}}
LIGHT_MODULES = ("config", "presets", "overrides", "recipe_errors", "run_dir", "environment", "results", "report.page")


def recipe(**sections):
    return Recipe.model_validate_json(json.dumps(SMALLEST | sections))


def test_teacher_data_and_budget_are_all_a_recipe_must_say():
    assert recipe().teacher.name == "gpt2"
    with pytest.raises(ValidationError, match="Field required"):
        Recipe.model_validate_json("{}")


@pytest.mark.parametrize(
    ("data", "choice"),
    [({"name": "pydoc"}, PydocText), ({"name": "wikitext"}, HubText), ({"path": "books"}, LocalText)],
)
def test_data_is_told_apart_by_name_and_path(data, choice):
    assert type(recipe(data=data).data) is choice


@pytest.mark.parametrize(("budget", "choice"), [({"steps": 3}, TrainingBySteps), ({"tokens": 3}, TrainingByTokens)])
def test_budget_is_told_apart_by_its_unit(budget, choice):
    assert type(recipe(training=budget).training) is choice


@pytest.mark.parametrize("training", [{}, {"steps": 1, "tokens": 1}, 3, None, [1]])
def test_anything_but_one_budget_is_refused(training):
    with pytest.raises(ValidationError, match="exactly one budget"):
        recipe(training=training)


@pytest.mark.parametrize("data", [{}, 3, None, ["pydoc"]])
def test_data_without_name_or_path_is_refused(data):
    with pytest.raises(ValidationError, match="data needs `name`"):
        recipe(data=data)


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        recipe(spikes={"level": 2})


@pytest.mark.parametrize("value", ["2", 2.0, True])
def test_numbers_are_not_converted(value):
    with pytest.raises(ValidationError, match="valid integer"):
        recipe(spikes={"levels": value})


def test_streaming_needs_a_bound():
    with pytest.raises(ValidationError, match=r"data\.max_documents"):
        recipe(data={"name": "c4", "streaming": True})


def test_windows_must_fit_learned_positions():
    with pytest.raises(ValidationError, match=r"student\.max_positions >= 256, got 100"):
        recipe(student={"mixer": "wkv", "max_positions": 100})
    assert recipe(student={"mixer": "wkv", "max_positions": 100, "positions": "none"}).student.max_positions == 100


def test_an_objective_of_nothing_is_refused():
    with pytest.raises(ValidationError, match="raise one of them"):
        recipe(objective={"kl_weight": 0})


def test_moment_decays_stay_below_one():
    with pytest.raises(ValidationError, match="less than 1"):
        recipe(training={"steps": 1, "betas": [0.9, 1.0]})


def test_a_recipe_cannot_change():
    with pytest.raises(ValidationError, match="frozen"):
        recipe().teacher.name = "other"


def test_what_reads_a_recipe_loads_no_model_library():
    imports = "; ".join(f"import asnn_goose.{name}" for name in LIGHT_MODULES)
    code = f"import sys; {imports}; print(sorted({{'torch', 'transformers', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("student", [{"mixer": "wkv"}, {"mixer": "goose", "initialization": "random"}])
@pytest.mark.parametrize("place", ["recipe", "stage"])
def test_hidden_states_are_compared_only_where_blocks_correspond(student, place):
    objective = {"objective": {"hidden_alignment": {"weight": 1.0}}}
    asked = objective if place == "recipe" else {"stages": [{"kind": "distill", "share": 1, **objective}]}
    with pytest.raises(ValidationError, match=r"objective\.hidden_alignment needs a student whose blocks stand for"):
        recipe(student=student, **asked)
    assert recipe(student={"mixer": "goose"}, **asked).follows_hidden_states
    assert not recipe(student={"mixer": "goose"}).follows_hidden_states


MIXTURE = {"source": "mixture", "parts": [{"weight": 1.0, "text": {"name": "pocket"}}] * 2}


def test_a_stage_may_weigh_the_parts_of_a_mixture_anew():
    def stage(weights, data=MIXTURE):
        """A recipe of one stage with these weights."""
        return recipe(data=data, stages=[{"kind": "distill", "share": 1, "part_weights": weights}])

    assert stage([0, 1]).stages[0].part_weights == (0.0, 1.0)
    for wrong in ([1], [0, 0], [1, 1e-4], []):
        with pytest.raises(ValidationError, match=r"stages\.0\.part_weights=.* for each of data\.parts \(2\)"):
            stage(wrong)
    with pytest.raises(ValidationError, match=r"stages\.0\.part_weights weighs the parts of data\.source=mixture"):
        stage([1], {"name": "pocket"})
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        stage([1, -1])


def test_replays_of_weights_that_are_sharded_are_refused(small_recipe):
    with pytest.raises(ValidationError, match="cuda_graphs replays work on weights where they are"):
        small_recipe(training={"cuda_graphs": True, "sharding": "fsdp2"})


def test_a_cache_of_last_hidden_states_is_refused_where_others_are_compared(small_recipe):
    base = small_recipe().model_dump(mode="json")
    teacher = {**base["teacher"], "hidden_cache": True}
    objective = {**base["objective"], "hidden_alignment": {"weight": 1.0}}
    with pytest.raises(ValidationError, match=r"teacher\.hidden_cache=true keeps what the teacher's head reads"):
        Recipe.model_validate(
            {**base, "teacher": teacher, "student": {"mixer": "goose"}, "objective": objective}, strict=False
        )


@pytest.mark.parametrize(
    ("student", "site"), [({"mixer": "wkv"}, "mixer_in"), ({"mixer": "goose", "gate_rank": 0}, "gate_mid")]
)
def test_a_site_that_the_student_has_not_is_refused(small_recipe, student, site):
    base = small_recipe().model_dump(mode="json")
    with pytest.raises(ValidationError, match=rf"spikes\.sites names '{site}', but a {student['mixer']} student"):
        Recipe.model_validate({**base, "student": student, "spikes": {"sites": [site]}}, strict=False)
    Recipe.model_validate({**base, "student": student, "spikes": {"sites": "all+head"}}, strict=False)
