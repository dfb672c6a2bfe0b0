import pytest

from asnn_goose.checks import Check, check, quotient


@pytest.mark.parametrize(("comparison", "outcomes"), [("<", "100"), ("<=", "110"), (">", "001"), (">=", "011")])
def test_checks_compare_value_with_threshold(comparison, outcomes):
    assert "".join(str(int(check("x", value, comparison, 2.0).passed)) for value in (1.0, 2.0, 3.0)) == outcomes


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_check_of_nothing_measured_fails(value):
    assert check("x", value, ">=", 0.0) == Check(name="x", value=None, comparison=">=", threshold=0.0, passed=False)


@pytest.mark.parametrize(
    ("pair", "value"), [((3.0, 2.0), 1.5), ((None, 2.0), None), ((3.0, None), None), ((3.0, 0), None)]
)
def test_a_quotient_needs_both_measurements(pair, value):
    assert quotient(*pair) == value
