import os

import pytest

from asnn_goose.errors import RunFolderError
from asnn_goose.report.finished_runs import finished_runs, previous_run
from asnn_goose.results import Hardware, Throughput
from asnn_goose.run_dir import RunDirectory


@pytest.fixture
def finished(results, tmp_path):
    """Makes a finished run folder whose end was at a given second."""

    def make(name, second, speed=None, device="H200", recipe="mine"):
        run = RunDirectory.create(tmp_path / name, "a: 1\n", {"recipe": recipe})
        changes = {"throughput": Throughput(tokens_per_second=speed), "hardware": Hardware(device=device)}
        run.write_results(results.model_copy(update={"recipe": recipe, **changes}))
        os.utime(run.results_path, (second, second))
        return run

    return make


def test_runs_come_in_the_order_of_their_ends_and_unfinished_ones_not_at_all(finished, tmp_path):
    finished("b", 20), finished("a", 30), finished("c", 10)
    RunDirectory.create(tmp_path / "unfinished", "a: 1\n", {})
    (tmp_path / "notes.txt").write_text("")
    assert [run.path.name for run in finished_runs(tmp_path)] == ["c", "b", "a"]


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="no folder of runs"):
        finished_runs(tmp_path / "nowhere")


def test_the_run_before_is_the_newest_of_the_same_recipe(finished):
    finished("old", 10, 100.0), finished("new", 20, 400.0), finished("other", 30, 900.0, recipe="other")
    mine = finished("mine", 40, 600.0)
    found = previous_run(mine, mine.read_results())
    assert (found.folder, found.tokens_per_second, found.speed_ratio) == ("new", 400.0, 1.5)


def test_another_device_s_speed_is_told_and_not_compared(finished):
    finished("old", 10, 100.0, device="T4")
    mine = finished("mine", 20, 600.0)
    found = previous_run(mine, mine.read_results())
    assert (found.device, found.tokens_per_second, found.speed_ratio) == ("T4", 100.0, None)


def test_a_damaged_run_is_passed_over_and_a_first_run_has_none_before(finished):
    finished("damaged", 10, 100.0).results_path.write_text("{")
    mine = finished("mine", 20, 600.0)
    assert previous_run(mine, mine.read_results()) is None
