import pytest

from asnn_goose.checks import Check, check, check_between, quotient


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


@pytest.mark.parametrize(("ends", "outcomes"), [(True, "01110"), (False, "00100")])
def test_a_value_between_two_may_be_an_end_only_where_ends_count(ends, outcomes):
    values = (0.0, 0.1, 0.5, 0.9, 1.0)
    assert "".join(str(int(check_between("x", value, 0.1, 0.9, ends=ends).passed)) for value in values) == outcomes


def test_what_is_required_reads_as_it_is_meant():
    assert check("x", 1.0, "<", 50.0).required == "< 50"
    assert check_between("x", 1.0, 0.1, 0.9).required == "in [0.1, 0.9]"
    assert check_between("x", None, 0.1, 0.9, ends=False).required == "in (0.1, 0.9)"


def test_a_failed_warning_is_a_warning():
    assert [check("x", 1.0, ">", 2.0, warns=warns).outcome for warns in (False, True)] == ["failed", "warning"]
    assert check("x", 3.0, ">", 2.0, warns=True).outcome == "passed"
