import math

import pytest
from pydantic import ValidationError

from asnn_goose.measurements import Curve, Record, curve, curves_from_metrics, finite_or_none, site_columns, site_curve

METRICS = [{"step": 10, "loss_nats": 3.0}, {"step": 20, "loss_nats": None, "evaluation_perplexity": 40.0}, {"step": 30}]


@pytest.mark.parametrize(("value", "kept"), [(1.5, 1.5), (math.nan, None), (-math.inf, None), (None, None), (3, 3)])
def test_only_finite_numbers_are_measurements(value, kept):
    assert finite_or_none(value) == kept


def test_a_curve_has_a_point_for_each_line_with_the_key():
    assert curve(METRICS, "loss_nats") == Curve(steps=(10, 20), values=(3.0, None))
    assert curve(METRICS, "evaluation_perplexity") == Curve(steps=(20,), values=(40.0,))


def test_a_key_never_logged_is_an_empty_curve():
    assert curves_from_metrics(METRICS).density == Curve()


def test_a_curve_has_one_value_a_step():
    with pytest.raises(ValidationError, match="2 steps have 1 values"):
        Curve(steps=(1, 2), values=(0.5,))


def test_records_are_closed():
    with pytest.raises(ValidationError, match="Extra inputs"):
        Record(anything=1)


def test_a_figure_of_a_site_over_steps_is_what_was_logged_to_six_digits():
    lines = [
        {"step": step, "spikes": site_columns({"a": {"density": value}, "b": {"density": 0.0}})}
        for step, value in ((1, 0.12345678), (2, math.nan))
    ]
    assert site_curve([*lines, {"step": 3}], "a", "density") == Curve(steps=(1, 2), values=(0.123457, None))
    assert site_curve(lines, "c", "density") == Curve()
    assert site_columns({}) == {"sites": []}
