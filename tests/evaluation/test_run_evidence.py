import pytest

from asnn_goose.config_recorded import recorded_facts
from asnn_goose.config_training import EarlyStopping
from asnn_goose.evaluation.run_evidence import deviation_of, last_share, mean_of, stop_step
from asnn_goose.measurements import Curve

PATIENCE = {"v13": 500, "v13.1": 500, "v14": 500, "v14.1": 500, "v14.2": 500, "v14.3": 800}


def curve_of(*points):
    return Curve(steps=tuple(step for step, _ in points), values=tuple(value for _, value in points))


@pytest.mark.parametrize("version", ["v13", "v14", "v14.1", "v14.2", "v14.3"])
def test_early_stopping_ends_the_recorded_runs_where_they_ended(version):
    facts = recorded_facts(version)
    rule = EarlyStopping(patience_steps=PATIENCE[version], min_delta=1.0)
    assert stop_step(curve_of(*facts.trajectory), rule) == facts.stop_step


def test_a_run_that_kept_improving_is_not_stopped():
    facts = recorded_facts("v13.1")
    assert stop_step(curve_of(*facts.trajectory), EarlyStopping(patience_steps=500, min_delta=1.0)) is None


def test_a_fall_smaller_than_the_least_is_none():
    slow = curve_of((100, 50.0), (200, 49.5), (300, 49.1), (400, 48.9))
    assert stop_step(slow, EarlyStopping(patience_steps=200, min_delta=1.0)) == 300
    assert stop_step(slow, EarlyStopping(patience_steps=200, min_delta=0.1)) is None


def test_the_count_starts_anew_with_a_stage_and_what_is_not_finite_improves_nothing():
    points = curve_of((100, 10.0), (200, 9.0), (300, 20.0), (400, None), (500, 21.0))
    assert stop_step(points, EarlyStopping(patience_steps=200, min_delta=0.0)) == 400
    assert stop_step(points, EarlyStopping(patience_steps=200, min_delta=0.0), start=200) == 500


def test_the_first_key_that_a_run_has_is_read(make_evidence):
    evidence = make_evidence(metrics={"temperature_lambda": [0.0, None, 1.0]})
    assert evidence.values(("lambda", "temperature_lambda")) == (0.0, 1.0)
    assert evidence.values(("temperature",)) == ()


def test_only_gpt2_under_the_recorded_protocol_is_as_recorded(make_evidence):
    assert make_evidence().is_as_recorded
    assert not make_evidence(teacher="pocket").is_as_recorded
    assert not make_evidence(protocol="standard").is_as_recorded


def test_a_budget_in_tokens_is_rounded_up_to_steps(make_evidence):
    evidence = make_evidence()
    training = {"tokens": 10_000, "batch_size": 4, "accumulation": 2, "window": 256}
    recipe = evidence.recipe.model_validate({"data": {"name": "pydoc"}, "training": training})
    assert evidence.step_budget == 100
    assert type(evidence)(recipe, evidence.results, [], evidence.encoders, 1).step_budget == 5


def test_a_fixed_temperature_has_no_bounds(make_evidence):
    assert make_evidence().temperature_bounds is None


def test_the_last_share_of_few_values_is_one_and_statistics_of_none_are_none():
    assert last_share([1.0, 2.0, 3.0], 0.2) == [3.0]
    assert last_share([float(number) for number in range(10)], 0.2) == [8.0, 9.0]
    assert (mean_of([]), deviation_of([])) == (None, None)
    assert deviation_of([1.0, 3.0]) == 1.0
