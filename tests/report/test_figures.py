import math
import subprocess
import sys

import pytest
from matplotlib.image import imread

from asnn_goose.measurements import Curve
from asnn_goose.report.figures import training_figure
from asnn_goose.results import SpikeResult

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
METRICS = [
    {"step": 10, "loss_nats": 5.0, "learning_rate": 1e-3, "density": 0.4},
    {"step": 20, "loss_nats": None, "learning_rate": 5e-4, "evaluation_perplexity": 900.0},
    {"step": 30, "loss_nats": 3.0, "learning_rate": 0.0, "evaluation_perplexity": 300.0},
]


@pytest.fixture
def drawn(monkeypatch):
    """The panels of the figure as it is written, by title."""
    panels = {}

    def keep(canvas, _file):
        panels.update({axes.get_title(loc="left"): axes for axes in canvas.figure.axes})

    monkeypatch.setattr("asnn_goose.report.figures.FigureCanvasAgg.print_png", keep)
    return panels


def test_the_figure_is_a_png(results, tmp_path):
    picture = training_figure(METRICS, results)
    assert picture.startswith(PNG_SIGNATURE)
    (tmp_path / "figure.png").write_bytes(picture)
    assert imread(tmp_path / "figure.png").std() > 0


def test_equal_runs_have_equal_figures(results):
    assert training_figure(METRICS, results) == training_figure(METRICS, results)


def test_a_run_without_metrics_has_a_figure_that_says_so(results, drawn):
    training_figure([], results)
    for title in ("Training loss", "Evaluation perplexity", "Learning rate"):
        assert [text.get_text() for text in drawn[title].texts] == ["not recorded"]


def test_the_teacher_stands_beside_the_student(results, drawn):
    training_figure(METRICS, results)
    student, teacher = drawn["Evaluation perplexity"].lines
    assert list(student.get_ydata()) == [900.0, 300.0]
    assert set(teacher.get_ydata()) == {20.0}


def test_what_was_not_finite_is_a_gap(results, drawn):
    training_figure(METRICS, results)
    first, gap, last = drawn["Training loss"].lines[0].get_ydata()
    assert (first, last) == (5.0, 3.0)
    assert math.isnan(gap)


def test_each_site_of_each_layer_has_its_density(results, drawn):
    training_figure(METRICS, results)
    assert [line.get_label() for line in drawn["Spike density"].lines] == ["layer 0 k", "layer 0 v"]


def test_without_histories_the_overall_density_is_drawn(results, drawn):
    training_figure(METRICS, results.model_copy(update={"spikes": SpikeResult()}))
    assert list(drawn["Spike density"].lines[0].get_ydata()) == [0.4]


def test_many_layers_keep_the_legend_short(results, drawn):
    history = Curve(steps=(1,), values=(0.5,))
    layers = [
        site.model_copy(update={"layer": layer, "history": history})
        for layer in range(30)
        for site in results.spikes.layers
    ]
    training_figure(METRICS, results.model_copy(update={"spikes": SpikeResult(layers=layers)}))
    named = [text.get_text() for text in drawn["Spike density"].get_legend().get_texts()]
    assert named == ["layer 0 k", "layer 0 v", "layer 29 k", "layer 29 v"]


def test_drawing_needs_no_pyplot():
    code = "import sys, asnn_goose.report.figures; print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
