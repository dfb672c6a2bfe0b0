"""The run at a glance: loss, perplexity, learning rate and spike density in one picture."""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import StrMethodFormatter

from asnn_goose.measurements import Curve, curves_from_metrics
from asnn_goose.results import Results, SiteSpikes

SIZE_INCHES = (11.0, 7.2)
DOTS_PER_INCH = 130
STUDENT_COLOR = "#2f6f9f"
TEACHER_COLOR = "#b5562b"
QUIET_COLOR = "#6b7280"
SITE_LINES = ("-", "--", ":", "-.")
MAX_LEGEND_LINES = 12
LOG_SCALE_RATIO = 10.0
"""Perplexities that span more than this factor are drawn on a logarithmic axis."""


def training_figure(metrics: Sequence[Mapping[str, Any]], results: Results) -> bytes:
    """A PNG of four panels over optimizer steps; a panel without data says so.

    Args:
        metrics: Lines of metrics.jsonl with the keys of `curves_from_metrics`.
        results: Gives the teacher's perplexity and each site's density history.
    """
    figure = Figure(
        figsize=SIZE_INCHES,
        dpi=DOTS_PER_INCH,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
        facecolor="white",
    )
    canvas = FigureCanvasAgg(figure)
    (loss, perplexity), (learning_rate, density) = figure.subplots(2, 2)
    curves = curves_from_metrics(metrics)
    _draw_curve(loss, curves.loss, "Training loss", "nats per token")
    _draw_perplexity(perplexity, curves.perplexity, results.teacher.perplexity)
    _draw_curve(learning_rate, curves.learning_rate, "Learning rate", "")
    learning_rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    _draw_density(density, curves.density, results.spikes.layers)
    for axes in (loss, perplexity, learning_rate, density):
        _quieten(axes)
    picture = BytesIO()
    canvas.print_png(picture)
    return picture.getvalue()


def _draw_curve(axes: Axes, curve: Curve, title: str, unit: str, marker: str = "") -> None:
    _title(axes, title, unit)
    if not curve.steps:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=QUIET_COLOR)
        return
    axes.plot(
        curve.steps, _gaps(curve), color=STUDENT_COLOR, linewidth=1.6, marker=marker, markersize=4, label="student"
    )


def _title(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_ylabel(unit)


def _draw_perplexity(axes: Axes, curve: Curve, teacher_perplexity: float | None) -> None:
    _draw_curve(axes, curve, "Evaluation perplexity", "perplexity", marker="o")
    shown = [value for value in (*curve.values, teacher_perplexity) if value is not None]
    if teacher_perplexity is not None:
        axes.axhline(
            teacher_perplexity,
            color=TEACHER_COLOR,
            linewidth=1.4,
            linestyle="--",
            label=f"teacher {teacher_perplexity:.2f}",
        )
    if shown:
        if min(shown) > 0 and max(shown) / min(shown) > LOG_SCALE_RATIO:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.legend(frameon=False, fontsize=9)


def _draw_density(axes: Axes, overall: Curve, layers: Sequence[SiteSpikes]) -> None:
    traced = [spikes for spikes in layers if spikes.history.steps]
    title, unit = "Spike density", "fraction of spikes that are not 0"
    if not traced:
        _draw_curve(axes, overall, title, unit)
        return
    _title(axes, title, unit)
    sites = list(dict.fromkeys(spikes.site for spikes in traced))
    last = max(spikes.layer for spikes in traced)
    named = {0, last} if len(traced) > MAX_LEGEND_LINES else set(range(last + 1))
    for spikes in traced:
        axes.plot(
            spikes.history.steps,
            _gaps(spikes.history),
            color=colormaps["viridis"](0.9 * spikes.layer / max(last, 1)),
            linestyle=SITE_LINES[sites.index(spikes.site) % len(SITE_LINES)],
            linewidth=1.4,
            label=f"layer {spikes.layer} {spikes.site}" if spikes.layer in named else None,
        )
    axes.legend(frameon=False, fontsize=8, ncols=2)


def _gaps(curve: Curve) -> list[float]:
    """The values with NaN, which matplotlib leaves out, where nothing finite was measured."""
    return [math.nan if value is None else value for value in curve.values]


def _quieten(axes: Axes) -> None:
    axes.set_xlabel("optimizer step", color=QUIET_COLOR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c4c8ce")
    axes.tick_params(which="both", colors=QUIET_COLOR, labelsize=9)
    axes.yaxis.label.set_color(QUIET_COLOR)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
