import json

import pytest
from matplotlib.image import imread

from asnn_goose.presets import recipe_yaml
from asnn_goose.results import ModelResult, Protocol, Results, SiteSpikes, SpikeResult
from spiking_frontier import COLUMNS, FinishedRun, frontier_figure, frontier_table, main, read_run

EVENTS = {"k": 0.5, "v": 0.7, "mixer_out": 1.0, "ffn_in": 2.0, "ffn_mid": 3.0}


def results(perplexity=30.0, teacher=20.0, window=256, **spikes):
    layers = tuple(SiteSpikes(layer=0, site=site, events_per_activation=events) for site, events in EVENTS.items())
    given = {"layers": layers, "density": 0.25, "spike_fed_mac_share": 0.8} | spikes
    return Results(
        version="0.1.0", recipe="quickstart", recipe_hash="0", seed=1, platform="local", stop_reason="budget",
        protocol=Protocol(kind="standard", tokenizer="gpt2", window=window, stride=window, tokens=4096),
        teacher=ModelResult(perplexity=teacher), student=ModelResult(perplexity=perplexity),
        spikes=SpikeResult(**given),
    )  # fmt: skip


def layers_of(events, site="ffn_in"):
    return (SiteSpikes(layer=0, site=site, events_per_activation=events),)


@pytest.fixture
def save(tmp_path, small_recipe):
    """Writes a run folder of two files."""

    def write(name, found, **spikes):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "results.json").write_text(found.to_json())
        (folder / "recipe.yaml").write_text(recipe_yaml(small_recipe(spikes=spikes)))
        return folder

    return write


@pytest.fixture
def run(small_recipe):
    def make(label="a", found=None, **spikes):
        return FinishedRun(label, small_recipe(spikes=spikes or {"sites": "all"}), found or results())

    return make


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_events_are_averaged_over_what_linear_layers_read_and_over_everything(run):
    assert run().linear_events == pytest.approx((1.0 + 2.0 + 3.0) / 3)
    assert run().all_events == pytest.approx((0.5 + 0.7 + 1.0 + 2.0 + 3.0) / 5)


def test_a_row_of_the_table_says_what_the_run_measured(run):
    measured = results(measured_spike_fed_mac_share=0.75)
    runs = [run("a", measured, sites="all", levels=4, encoder="binary"), run("b", results(22.0), sites=[])]
    head, _, first, dense = cells(frontier_table(runs, twin_perplexity=25.0))
    assert tuple(head) == COLUMNS
    assert first == ["a", "4", "all", "binary", "2.000", "1.440", "0.250", "0.7500", "30.000", "1.500", "1.200"]
    assert dense[1:4] + dense[7:] == ["–", "–", "dense", "0.8000 (planned)", "22.000", "1.100", "0.880"]


@pytest.mark.parametrize("as_text", [True, False])
def test_a_bundle_says_what_its_folder_says(save, small_recipe, tmp_path, as_text):
    folder = save("run", results(), sites=["ffn_in"], levels=3)
    recipe = small_recipe(spikes={"sites": ["ffn_in"], "levels": 3})
    written = recipe_yaml(recipe) if as_text else recipe.model_dump(mode="json")
    bundle = tmp_path / "bundle.json"
    bundle.write_text(json.dumps({"results": json.loads(results().to_json()), "recipe": written}))
    assert read_run(bundle, "x") == read_run(folder, "x") == FinishedRun("x", recipe, results())


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_picture_is_written_and_the_twin_is_a_line_and_a_row(save, tmp_path, capsys, kind):
    given = [f"D = {d}={save(str(d), results(20.0 + d), sites='all', levels=d)}" for d in (1, 2)]
    picture = tmp_path / f"frontier.{kind}"
    assert main([*given, "--out", str(picture), "--dense-twin", str(save("dense", results(20.5), sites=[]))]) == 0
    assert [row[0] for row in cells(capsys.readouterr().out)[2:]] == ["D = 1", "D = 2", "dense"]
    assert imread(picture).std() > 0 if kind == "png" else "</svg>" in picture.read_text()


def test_a_twin_may_be_a_perplexity_alone(save, tmp_path, capsys):
    given = [str(save("one", results(), sites="all")), "--dense-twin", "25", "--quantized-twin", "24"]
    assert main([*given, "--out", str(tmp_path / "a.png")]) == 0
    (row,) = cells(capsys.readouterr().out)[2:]
    assert (row[0], row[-1]) == ("one", "1.200")


def test_each_largest_spike_has_its_marker_and_a_point_only_where_it_was_measured(run):
    recorded = results(layers=layers_of(0.5, "k"))
    runs = [run("a", sites="all", levels=1), run("b", sites="all", levels=4), run("c", recorded, sites="recorded")]
    linear, everywhere = frontier_figure(runs, {"dense twin": 1.1}).axes
    assert [text.get_text() for text in linear.texts] == ["a", "b"]
    assert [text.get_text() for text in everywhere.texts] == ["a", "b", "c"]
    named = [text.get_text() for text in everywhere.get_legend().get_texts()]
    assert named == ["D = 1", "D = 4", "teacher 1.000", "dense twin 1.100"]
    outlines = [points.get_paths()[0].vertices.tolist() for points in linear.collections]
    assert outlines[0] != outlines[1]
    assert everywhere.get_xscale() == "linear"


def test_what_spans_a_wide_range_is_drawn_on_logarithmic_axes(run):
    wide = [results(perplexity, layers=layers_of(events)) for perplexity, events in ((30.0, 0.25), (300.0, 2.0))]
    linear, _ = frontier_figure([run(found=found) for found in wide], {}).axes
    assert (linear.get_xscale(), linear.get_yscale()) == ("log", "log")


def test_a_folder_without_results_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path / "a.png")]) == 2
    told = capsys.readouterr()
    assert "no results.json" in told.err
    assert (told.err.count("\n"), told.out) == (1, "")


@pytest.mark.parametrize("other", [{"window": 512}, {"teacher": 21.0}])
def test_runs_under_other_protocols_or_teachers_are_not_drawn_together(save, tmp_path, capsys, other):
    folders = [str(save("one", results())), str(save("two", results(**other)))]
    assert main([*folders, "--out", str(tmp_path / "a.png")]) == 2
    assert "one and two were measured under other protocols" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", '{"results": {}}', '{"results": {}, "recipe": {"spikes": 3}}'])
def test_a_file_that_is_no_bundle_is_one_line_and_exit_code_2(tmp_path, capsys, text):
    (tmp_path / "b.json").write_text(text)
    assert main([str(tmp_path / "b.json"), "--out", str(tmp_path / "a.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
