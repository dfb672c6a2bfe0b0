import pytest

from asnn_goose.checks import check
from asnn_goose.config_recorded import recorded_facts, recorded_line
from asnn_goose.measurements import Curve, Curves
from asnn_goose.report.recorded_block import our_facts_by_name, recorded_beside, recorded_facts_by_name
from asnn_goose.results import Counters, Hardware, Perplexities, Temperature


@pytest.mark.parametrize("facts", recorded_line(), ids=lambda facts: facts.version)
def test_nothing_unrecorded_is_shown(results, facts):
    rows = recorded_beside(facts, results)
    assert rows[0][:2] == ("Outcome", f"{facts.status}, archived" if facts.archived else facts.status)
    assert all("None" not in text for row in rows for text in row)
    assert all(recorded not in ("", "–") or ours not in ("", "–") for _, recorded, ours in rows)


def test_the_recorded_block_is_whole():
    said = recorded_facts_by_name(recorded_facts("v14.3"))
    assert said["Best evaluation"] == "306.89 @ 3,300"
    assert said["After test-time training ÷ teacher"] == "6.90"
    assert said["Perplexity by step"].startswith("300: 512.71; 600: 407.16; ")
    assert (said["Temperature"], said["Lambda by step"]) == ("2 → 1.61", "4,200: 0.45")
    assert (said["Time"], said["Memory"], said["Checks passed"]) == ("~240.0 min", "5.57 GB", "12 of 12")


def test_two_runs_of_one_version_are_both_told():
    said = recorded_facts_by_name(recorded_facts("v11.1a"))
    assert said["Another run, bug"] == "1,318.50 (bug): the anchor was conditional on stages"
    assert recorded_facts_by_name(recorded_facts("v8"))["Amplitudes"] == "0.74 to 1.08"


def test_the_run_s_own_figures_have_the_same_names(results):
    ours = results.model_copy(
        update={
            "perplexities": Perplexities(best=30.0, best_step=1200), "temperature": Temperature(final=1.5),
            "curves": Curves(temperature=Curve(steps=(1, 2), values=(2.0, 1.5))),
            "counters": Counters(steps_done=3000), "hardware": Hardware(tokens=5, seconds=90.0, device="T4"),
            "checks": (check("v9: a", 1.0, ">", 0.0), check("v9: b", 1.0, ">", 2.0), check("other", 1.0, ">", 0.0)),
        }
    )  # fmt: skip
    said = our_facts_by_name(recorded_facts("v9"), ours)
    assert (said["Best evaluation"], said["Best ÷ teacher"]) == ("30.00 @ 1,200", "1.50")
    assert (said["Temperature"], said["Ended at step"], said["Time"]) == ("2 → 1.5", "3,000", "1.5 min")
    assert (said["Checks passed"], said["After test-time training"]) == ("1 of 2", "–")
    assert set(said) <= set(recorded_facts_by_name(recorded_facts("v9")))
