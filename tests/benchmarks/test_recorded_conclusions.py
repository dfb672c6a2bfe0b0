import json
from pathlib import Path

import pytest

from asnn_goose.checks import Check
from asnn_goose.health import Course, Health
from asnn_goose.presets import load_recipe, recipe_yaml
from asnn_goose.results import (
    Counters,
    Hardware,
    ModelResult,
    Perplexities,
    Protocol,
    Ratio,
    Results,
    Temperature,
)
from many_runs import bundle, read_plan
from recorded_conclusions import COLUMNS, QUESTIONS, SEED, main, ratio_on_text

PLAN = Path(__file__).parents[2] / "benchmarks" / "plans" / "recorded_smollm2.yaml"
SHIPPED = PLAN.parents[1] / "results" / PLAN.stem
TEACHER = 20.0


def results(seed=42, ratio=10.0, last=12.0, teacher=TEACHER, steps=3000, reason="budget", temperature=2.0, gap=None):
    checks = () if gap is None else (
        Check(name="amplitudes of k and v differ by", value=gap, comparison=">", threshold=0.0, passed=gap > 0),
    )  # fmt: skip
    return Results(
        version="0.1.0", recipe="v12.1", recipe_hash="0", seed=seed, platform="local", stop_reason=reason,
        protocol=Protocol(kind="recorded", tokenizer="x", window=256, stride=128, tokens=4096),
        teacher=ModelResult(perplexity=teacher), student=ModelResult(perplexity=ratio * teacher),
        perplexities=Perplexities(best=ratio * teacher, best_step=steps - 300, last=last * teacher),
        ratio=Ratio(to_teacher=ratio), temperature=Temperature(final=temperature), checks=checks,
        hardware=Hardware(tokens=4096 * steps), counters=Counters(steps_done=steps),
        health=Health(train_validation_gap=Course(unit="nats per token", last=0.25)),
    )  # fmt: skip


@pytest.fixture
def save(tmp_path, small_recipe):
    """Writes what `many_runs.py` leaves of a run."""
    recipe = recipe_yaml(small_recipe())

    def write(name, found, perplexity=None):
        evaluations = {"256": perplexity and {"models": [{"perplexity": perplexity}], "ratio": None}}
        given = {"recipe": recipe, "results": json.loads(found.to_json()), "evaluations": evaluations, "metrics": []}
        (tmp_path / f"{name}.json").write_text(json.dumps(given))
        return tmp_path

    return write


def rows_of(printed):
    """Cells by column, of each run of each title."""
    tables = {}
    for part in printed.split("### ")[1:]:
        title, _, head, _, *lines = part.splitlines()
        split = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, *lines) if line]
        assert tuple(split[0]) == COLUMNS
        tables[title] = {cells[0]: dict(zip(COLUMNS, cells, strict=True)) for cells in split[1:]}
    return tables


def test_a_row_is_the_mean_over_seeds_and_is_compared_seed_by_seed(save, capsys):
    save("v12.1-exact-s42", results(42, 10.0, temperature=1.5))
    save("v12.1-exact-s43", results(43, 20.0, temperature=1.7))
    save("v12.1-fixed-2-s42", results(42, 11.0))
    folder = save("v12.1-fixed-2-s43", results(43, 24.0))
    assert main([str(folder)]) == 0
    table = rows_of(capsys.readouterr().out)["CTKD against temperatures that know nothing"]
    learned, fixed = table["v12.1-exact"], table["v12.1-fixed-2"]
    assert (learned["seeds"], learned["of its teacher"], learned["compared"]) == ("2", "15.000 ± 7.071", "–")
    assert learned["temperature at the end"] == "1.600 ± 0.141"
    # 1.1 and 1.2, whose mean is 1.15 and whose deviation is 0.1 / sqrt(2).
    assert fixed["compared"] == "1.150 ± 0.071 × v12.1-exact"


def test_a_row_says_where_a_run_ended_and_what_is_known_besides(save, capsys):
    save("v11.1-ones-s42", results(steps=900, reason="early_stopping", gap=0.0), perplexity=300.0)
    folder = save("v11.1-jitter-s42", results(last=10.0, gap=0.1976))
    assert main([str(folder), "--teacher-perplexity", "30"]) == 0
    table = rows_of(capsys.readouterr().out)["Symmetry of k and v"]
    assert list(table["v11.1-ones"].values()) == [
        "v11.1-ones", "1", "10.000", "12.000", "10.000", "–", "2.000", "900 (early_stopping)", "600", "3.7", "0.25",
        "0",
    ]  # fmt: skip
    assert (table["v11.1-jitter"]["text"], table["v11.1-jitter"]["at the end"]) == ("–", "10.000")
    assert table["v11.1-jitter"]["largest difference of amplitudes"] == "0.198"


def test_steps_of_several_seeds_are_the_least_and_the_most(save, capsys):
    save("v13-exact-s42", results(42, steps=1200, reason="early_stopping"))
    folder = save("v13-exact-s43", results(43, steps=5000))
    assert main([str(folder)]) == 0
    row = rows_of(capsys.readouterr().out)["POCL"]["v13-exact"]
    assert (row["steps"], row["best step"]) == ("1,200 to 5,000 (budget, early_stopping)", "900 to 4,700")


@pytest.mark.parametrize(
    ("evaluation", "teacher", "ratio"),
    [
        ({"models": [{"perplexity": 60.0}], "ratio": None}, 30.0, 2.0),
        ({"models": [{"perplexity": 60.0}, {"perplexity": 20.0}], "ratio": 3.0}, 30.0, 3.0),
        ({"models": [{"perplexity": 60.0}], "ratio": None}, None, None),
        (None, 30.0, None),
    ],
)
def test_the_text_has_a_ratio_where_its_teacher_is_known(evaluation, teacher, ratio):
    assert ratio_on_text(evaluation, teacher) == ratio


def test_what_a_real_run_leaves_is_read_and_a_run_that_no_question_names_comes_last(finished_run, tmp_path, capsys):
    measured = finished_run.results
    assert measured is not None
    for name in ("v9-exact-s42", "mine"):
        (tmp_path / f"{name}.json").write_text(json.dumps(bundle(finished_run.folder.path, {})))
    assert main([str(tmp_path)]) == 0
    tables = rows_of(capsys.readouterr().out)
    assert list(tables)[-1] == "Other runs"
    assert tables["The ternary tax"]["v9-exact"]["steps"] == f"{measured.counters.steps_done} (budget)"
    assert tables["Other runs"]["mine"]["of its teacher"] == f"{measured.ratio.to_teacher:.3f}"


def test_runs_of_other_teachers_are_refused_and_so_is_a_folder_without_runs(save, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 2
    save("v9-exact-s42", results())
    assert main([str(save("v9-dense-s42", results(teacher=30.0)))]) == 2
    told = capsys.readouterr()
    assert (told.err.count("\n"), told.out) == (2, "")


def test_the_plan_has_every_run_that_a_question_names_and_no_other():
    planned = {SEED.sub("", run.name) for run in read_plan(PLAN, [])}
    assert planned == {name for groups in QUESTIONS.values() for group in groups for name in group}


def test_a_planned_runs_name_ends_in_its_seed_and_every_group_has_the_first():
    runs = read_plan(PLAN, [])
    assert all(run.name.endswith(f"-s{load_recipe(run.recipe, run.overrides).training.seed}") for run in runs)
    assert {SEED.sub("", run.name) for run in runs} == {run.name[:-4] for run in runs if run.name.endswith("-s42")}


@pytest.mark.parametrize(
    ("one", "other", "changed"),
    [
        ("v9-exact", "v9-recorded", {"student.recurrence"}),
        ("v14.3-exact", "v14.3-dense", {"spikes.sites"}),
        ("v12.1-exact", "v12.1-sign", {"objective.temperature"}),
        ("v14.2-exact", "v14.2-fixed-2", {"objective.temperature"}),
        ("v14.2-exact", "v14.2-4x", {"training.steps", "training.early_stopping"}),
        ("512-kl", "512-both", {"objective.cross_entropy_weight", "objective.feature_dynamics"}),
        ("320-both", "512-both", {"student.width"}),
        ("v11.1-ones", "v11.1-jitter", {"spikes.amplitude_init"}),
    ],
)
def test_a_comparison_changes_nothing_but_what_it_is_about(one, other, changed):
    runs = {run.name: run for run in read_plan(PLAN, [])}
    recipes = [load_recipe(runs[f"{name}-s42"].recipe, runs[f"{name}-s42"].overrides) for name in (one, other)]
    first, second = (recipe.model_dump(mode="json") for recipe in recipes)
    sections = [section for section in first if first[section] != second[section]]
    found = {f"{part}.{key}" for part in sections for key in first[part] if first[part][key] != second[part][key]}
    assert found == changed


def test_the_capacity_cells_add_what_v14_1_added_to_v12_1():
    runs = {run.name: run for run in read_plan(PLAN, [])}
    cell = load_recipe("v12.1", runs["512-both-s42"].overrides)
    v14_1 = load_recipe("v14.1", runs["v14.1-exact-s42"].overrides)
    assert (cell.student, cell.spikes, cell.objective) == (v14_1.student, v14_1.spikes, v14_1.objective)


def test_the_runs_that_are_shipped_are_the_plans_and_as_many_as_the_results_say(capsys):
    planned, shipped = {run.name for run in read_plan(PLAN, ())}, {path.stem for path in SHIPPED.glob("*.json")}
    assert shipped <= planned
    said = (PLAN.parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"**{len(shipped)} of the plan's {len(planned)} runs so far**" in said
    assert main([str(SHIPPED), "--teacher-perplexity", "38.51681"]) == 0
    printed = capsys.readouterr().out
    assert all(f"### {title}" in printed for title in QUESTIONS)
    assert "### Other runs" not in printed
