from dataclasses import replace

import pytest

from asnn_goose.config import Recipe
from asnn_goose.evaluation.sound_checks import further_checks


def named(evidence):
    return {entry.name: entry for entry in further_checks(evidence)}


@pytest.mark.parametrize(("reloaded", "passed"), [(300.0, True), (300.001, True), (300.1, False), (None, False)])
def test_a_checkpoint_is_the_student_it_was_saved_for(make_evidence, reloaded, passed):
    assert named(make_evidence(reloaded=reloaded))["best checkpoint read again, its perplexity off by"].passed is passed


def test_a_student_better_than_its_teacher_is_a_warning(make_evidence):
    found = named(make_evidence(perplexities=(1522.0, 1972.0)))["student's perplexity over the teacher's"]
    assert (found.outcome, found.required) == ("warning", ">= 1")


def test_equal_amplitudes_are_a_warning_and_missing_ones_no_check(make_evidence):
    name = "amplitudes of k and v differ by"
    assert named(make_evidence(encoders={"amplitude_gap": 0.0}))[name].outcome == "warning"
    assert named(make_evidence())[name].passed
    assert name not in named(make_evidence(encoders={"amplitude_gap": None}))


def test_feature_dynamics_are_checked_where_they_took_part(make_evidence):
    name = "feature dynamics' loss, last over first"
    assert name not in named(make_evidence())
    fell = named(make_evidence(metrics={"feature_dynamics": [0.0, 0.8, 0.8, 0.8, 0.8, 0.8, 0.6]}))[name]
    assert fell.value == pytest.approx(3.8 / 4.0)
    assert not named(make_evidence(metrics={"feature_dynamics": [0.6, 0.8]}))[name].value < 1.0


class Learned:
    """A temperature that learns, as a recipe states it."""

    def model_dump(self):
        return {"kind": "ctkd", "lower": 1.0, "upper": 5.0}


@pytest.mark.parametrize(
    ("course", "outcomes"),
    [([2.0, 1.6], "11"), ([2.0, 2.001], "10"), ([2.0, 5.0], "01"), ([1.0, 2.0], "01"), ([], "00")],
)
def test_a_learned_temperature_moves_and_stays_off_its_bounds(make_evidence, course, outcomes):
    evidence = make_evidence(metrics={"temperature": course})
    objective = evidence.recipe.objective.model_copy(update={"temperature": Learned()})
    recipe = Recipe.model_copy(evidence.recipe, update={"objective": objective})
    found = named(replace(evidence, recipe=recipe))
    names = ("temperature nearest to a bound", "temperature moved by")
    assert "".join(str(int(found[name].passed)) for name in names) == outcomes


def test_a_fixed_temperature_is_not_asked_to_move(make_evidence):
    assert "temperature moved by" not in named(make_evidence(metrics={"temperature": [2.0, 2.0]}))


def test_the_version_s_own_checks_come_last(make_evidence):
    assert list(named(make_evidence("v9")))[-1] == "v9: amplitude_health"
