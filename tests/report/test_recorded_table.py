from io import StringIO

import pytest
from rich.console import Console

from asnn_goose.checks import check
from asnn_goose.config_recorded import RECORDED_VERSIONS, recorded_facts
from asnn_goose.errors import RunFolderError
from asnn_goose.recorded import Comparison
from asnn_goose.report.recorded_table import gaps_table, markdown_table, our_runs, recorded_rows, rich_table
from asnn_goose.run_dir import RunDirectory


@pytest.fixture
def runs(results, tmp_path):
    """Runs of v9 and v14.3, one of no version, and one that is damaged."""
    for name, version in (("b-v9", "v9"), ("a-v9", "v9"), ("best", "v14.3"), ("other", None), ("torn", "v6")):
        run = RunDirectory.create(tmp_path / name, "a: 1\n", {})
        repeated = None if version is None else recorded_facts(version)
        run.write_results(results.model_copy(update={"comparison": Comparison(repeated=repeated)}))
    (tmp_path / "torn" / "results.json").write_text("{")
    return our_runs(tmp_path)


def test_every_version_has_one_row_in_the_record_s_order():
    assert [row[0] for row in recorded_rows()] == list(RECORDED_VERSIONS)


def test_ratios_are_over_44_6_and_targets_say_whether_they_were_met():
    rows = {row[0]: row for row in recorded_rows()}
    assert rows["v14.3"][5:9] == ("306.89 @ 3,300", "307.70", "6.90", "< 310, met")
    assert rows["v9"][6:9] == ("541.70", "12.15", "< 520, missed")
    assert rows["v12"][5:8] == ("~1,000.00 @ 600", "~1,000.00", "~22.42")
    assert rows["v4"][6] == "≥ 22,026 (cap)"


def test_a_run_is_matched_by_its_version_and_the_rest_is_not_seen(runs):
    assert [(run.version, run.folder) for run in runs] == [("v9", "b-v9"), ("v9", "a-v9"), ("v14.3", "best")]
    rows = recorded_rows(runs)
    assert len(rows) == len(RECORDED_VERSIONS) + 1
    assert [row[10:] for row in rows if row[0] == "v14.3"] == [("best", "gpt2", "30.00", "1.50", "1 of 2")]
    assert {row[10:] for row in rows if row[0] == "v8"} == {("–",) * 5}


def test_a_document_s_table_has_one_width(runs):
    lines = markdown_table(runs).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].endswith("| ours: teacher | ours: best | ours: ÷ teacher | ours: checks |")
    assert lines[1].startswith("| --- |")


def test_gaps_stand_side_by_side_in_the_record_s_order(runs):
    rows = gaps_table(runs).splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == ["a-v9", "b-v9", "best"]
    assert rows[2] == "| v14.3 | best | gpt2 | 1.50 | 6.90 | 0.22 | 1 of 2 |"


def test_a_terminal_of_80_columns_shows_every_figure(runs):
    console = Console(file=StringIO(), width=80)
    console.print(rich_table())
    said = console.file.getvalue()
    assert all(text in said for text in ("10-512x8", "541.70, 12.15×", "2025-12-27", "114.68M", "< 310, met"))
    assert "…" not in said
    wider = Console(file=StringIO(), width=120)
    wider.print(rich_table(runs))
    assert all(text in wider.file.getvalue() for text in ("1.50×", "a-v9", "b-v9", "1 of 2", "6.90×"))


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(RunFolderError):
        our_runs(tmp_path / "nowhere")


def test_warnings_count_as_what_they_are(results, runs):
    failed = results.model_copy(update={"checks": (check("x", 0.0, ">", 1.0, warns=True),)})
    shown = gaps_table([type(runs[0])("v9", "r", failed)]).splitlines()[2]
    assert shown.endswith("| 0 of 1 |")
