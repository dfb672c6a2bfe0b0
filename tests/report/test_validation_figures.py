import math
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from asnn_goose.report.validation_figures import save_validation_figures, validation_figure
from asnn_goose.validation_results import CausalUse, Replacement, Representation, ValidationResults

GOLDEN = Path(__file__).parents[1] / "golden" / "validation.json"
TITLES = (
    "How often channels spike",
    "What a site tells of the teacher",
    "Debiased CKA of block outputs",
    "Perplexity once spikes are replaced",
)


@pytest.fixture
def validation():
    """A validation of two sites whose spikes are all but used."""
    return ValidationResults.from_json(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture
def drawn(monkeypatch):
    """The panels of the figure as it is written, by title."""
    panels = {}

    def keep(canvas, _file):
        panels.update({axes.get_title(loc="left"): axes for axes in canvas.figure.axes})

    monkeypatch.setattr("asnn_goose.report.validation_figures.FigureCanvasAgg.print_png", keep)
    return panels


def test_the_figure_is_written_as_a_png(validation, tmp_path):
    (path,) = save_validation_figures(validation, tmp_path)
    assert path.parent == tmp_path
    assert imread(path).std() > 0


def test_equal_validations_have_equal_figures(validation):
    assert validation_figure(validation) == validation_figure(validation)


def test_without_measurements_every_panel_says_so(validation, drawn):
    bare = {"health": (), "probes": (), "representation": Representation(), "causal": CausalUse()}
    validation_figure(validation.model_copy(update=bare))
    for title in TITLES:
        assert [text.get_text() for text in drawn[title].texts] == ["not measured"]


def test_histograms_add_up_to_all_channels(validation, drawn):
    validation_figure(validation)
    for stairs in drawn[TITLES[0]].patches:
        assert math.isclose(sum(stairs.get_data().values), 1.0)


def test_spikes_stand_beside_what_they_are_made_of_and_every_control(validation, drawn):
    validation_figure(validation)
    lines = {line.get_label(): list(line.get_ydata()) for line in drawn[TITLES[1]].lines}
    assert lines["spikes"] == pytest.approx([1.8, 1.6])
    assert lines["untrained student"] == pytest.approx([0.4, 0.4])
    assert lines["control: time shift"] == pytest.approx([0.02, 0.02])
    assert "dense twin" not in lines


def test_a_site_of_several_blocks_is_its_mean(validation, drawn):
    more = [entry.model_copy(update={"layer": 1, "spikes_bits": 0.8}) for entry in validation.probes]
    validation_figure(validation.model_copy(update={"probes": (*validation.probes, *more)}))
    spikes = next(line for line in drawn[TITLES[1]].lines if line.get_label() == "spikes")
    assert list(spikes.get_ydata()) == pytest.approx([1.3, 1.2])


def test_every_cell_of_a_small_matrix_shows_its_number(validation, drawn):
    validation_figure(validation)
    assert [text.get_text() for text in drawn[TITLES[2]].texts] == ["0.30", "0.45", "0.61"]


def test_bars_start_at_the_untouched_student(validation, drawn):
    validation_figure(validation)
    bars = drawn[TITLES[3]].patches
    assert {bar.get_y() for bar in bars} == {1.0}
    assert max(bar.get_y() + bar.get_height() for bar in bars) == pytest.approx(3.0)


def test_ratios_of_different_sizes_are_drawn_on_a_logarithmic_axis(validation, drawn):
    wide = CausalUse(replacements=(Replacement(site="k", replacement="zeroed", ratio=400.0),))
    few = CausalUse(replacements=(Replacement(site="k", replacement="zeroed", ratio=2.0),))
    for causal, scale in ((wide, "log"), (few, "linear")):
        validation_figure(validation.model_copy(update={"causal": causal}))
        assert drawn[TITLES[3]].get_yscale() == scale


def test_drawing_needs_neither_pyplot_nor_torch():
    code = (
        "import sys, asnn_goose.report.validation_figures, asnn_goose.report.validation_tables; "
        "print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
