from io import StringIO

import pytest
from rich.console import Console

from asnn_goose.config_recorded import recorded_facts
from asnn_goose.errors import RunFolderError
from asnn_goose.recorded import Comparison
from asnn_goose.report.terminal import print_results
from asnn_goose.results import Controls, Sample, Stage, Throughput
from asnn_goose.run_dir import RunDirectory


@pytest.fixture
def printed(tmp_path):
    """Prints results as a finished run leaves them."""

    def show(results):
        folder = RunDirectory.create(tmp_path / "run", "a: 1\n", {})
        folder.write_results(results)
        console = Console(file=StringIO(), width=120)
        print_results(folder, console)
        return console.file.getvalue()

    return show


def test_both_models_the_ratio_and_the_protocol_are_told(printed, results):
    text = printed(results)
    for told in ("teacher gpt2", "20.00", "30.00", "ratio to the teacher 1.50", "window 256", "16,384 tokens"):
        assert told in text


def test_stages_and_controls_stand_with_their_ratios(printed, results):
    stages = tuple(Stage(name=name, perplexity=perplexity) for name, perplexity in (("align", 50.0), ("distill", 30.0)))
    text = printed(results.model_copy(update={"stages": stages, "controls": Controls(random_weights=4000.0)}))
    lines = {line.split("\u2502")[1].strip(): line for line in text.splitlines() if line.count("\u2502") == 5}
    assert "2.50" in lines["student after align"]
    assert "200.00" in lines["control: random weights"]
    assert "control: weights only copied" not in lines


def test_what_was_not_measured_is_said(printed, results):
    assert "not measured" in printed(results)


def test_samples_stand_side_by_side_as_they_are(printed, results):
    sample = Sample(prompt="Once [bold]upon", teacher="a time\n\nthere was", student="a hat")
    text = printed(results.model_copy(update={"samples": (sample,)}))
    line = next(line for line in text.splitlines() if "Once [bold]upon" in line)
    assert "a time there was" in line
    assert "a hat" in line


def test_the_run_folder_and_what_to_try_next_are_named(printed, results):
    text = printed(results)
    assert "report.html" in text
    assert text.count("asnn-goose ") >= 3


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(RunFolderError):
        print_results(RunDirectory.create(tmp_path / "run", "a: 1\n", {}), Console(quiet=True))


@pytest.mark.parametrize(("share", "told"), [(None, False), (0.25, True)])
def test_the_speed_is_told_and_the_share_of_the_peak_where_it_is_known(printed, results, share, told):
    text = printed(results.model_copy(update={"throughput": Throughput(tokens_per_second=123456.0, mfu=share)}))
    assert "trained at 123,456 tokens/s on" in text
    assert ("25.0% of its peak arithmetic" in text) is told


def test_checks_are_counted_and_what_failed_is_named(printed, results):
    text = printed(results)
    assert "checks: 1 of 2 passed" in text
    assert "failed: mfu not measured, required > 0.35" in text
    assert "density 0.38," not in text


def test_a_repeated_version_stands_with_its_recorded_ratio(printed, results):
    text = printed(results.model_copy(update={"comparison": Comparison(repeated=recorded_facts("v9"))}))
    assert "recorded v9: 12.15x its teacher's" in text
