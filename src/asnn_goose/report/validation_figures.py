"""A validation of spikes in one picture: rates, information beside its controls, CKA, and what spikes are worth."""

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import StrMethodFormatter

from asnn_goose.report.figures import DOTS_PER_INCH, QUIET_COLOR, STUDENT_COLOR, TEACHER_COLOR
from asnn_goose.validation_results import RATE_BINS, CausalUse, SiteHealth, SiteProbe, ValidationResults

SIZE_INCHES = (12.5, 8.4)
FIGURE_NAME = "validation.png"
GRID_COLOR, SPINE_COLOR = "#e6e8eb", "#c4c8ce"
CONTROL_COLOR, CONTROL_MARKERS = "#a3a8b0", "x+1v^*"
INFORMATION_MARKS = {
    "activations before": ("_", QUIET_COLOR, 15),
    "spikes": ("o", STUDENT_COLOR, 8),
    "dense twin": ("D", "#4f8a5b", 6),
    "untrained student": ("s", TEACHER_COLOR, 7),
}
"""Marker, color and size; what is not named is a control."""
SITE_COLORS = ("#2f6f9f", "#b5562b", "#4f8a5b", "#8a6bb1", "#c39b2e", "#5f9ea0", "#a14d6c", "#6b7280")
REPLACEMENT_COLORS = ("#b5562b", "#d99a6c", "#7a4a8c", "#3d3f45")
"""Of what destroys spikes."""
HARMLESS, HARMLESS_COLOR = "preactivations", "#6fa8cf"
"""The replacement that destroys nothing."""
MOST_LABELLED_CELLS = 64
"""Cells of a matrix up to which each shows its number."""
MOST_LEVEL_NAMES = 4
"""Sites up to which their names fit beside each other."""
LOG_SCALE_RATIO = 10.0
"""Ratios that span more than this factor are drawn on a logarithmic axis."""


def save_validation_figures(results: ValidationResults, folder: Path) -> tuple[Path, ...]:
    """Write the picture into a folder that exists; the paths of what was written."""
    path = folder / FIGURE_NAME
    path.write_bytes(validation_figure(results))
    return (path,)


def validation_figure(results: ValidationResults) -> bytes:
    """A PNG of four panels; one without data says so. Sites of several blocks are means over blocks."""
    figure = Figure(
        figsize=SIZE_INCHES,
        dpi=DOTS_PER_INCH,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
        facecolor="white",
    )
    canvas = FigureCanvasAgg(figure)
    (rates, told), (alike, used) = figure.subplots(2, 2)
    _draw_rates(rates, results.health)
    _draw_information(told, results.probes)
    _draw_similarity(alike, results.representation.block_outputs)
    _draw_use(used, results.causal, results.options.sound.causal_ratio)
    picture = BytesIO()
    canvas.print_png(picture)
    return picture.getvalue()


def _draw_rates(axes: Axes, health: Sequence[SiteHealth]) -> None:
    _prepare(axes, "How often channels spike", "share of a site's channels")
    axes.set_xlabel("share of tokens at which a channel spikes", color=QUIET_COLOR)
    if not health:
        _say_nothing(axes)
        return
    borders = [place / RATE_BINS for place in range(RATE_BINS + 1)]
    for index, site in enumerate(dict.fromkeys(entry.site for entry in health)):
        histograms = [entry.rate_histogram for entry in health if entry.site == site]
        counts = [sum(bins) for bins in zip(*histograms, strict=True)]
        shares = [count / max(1, sum(counts)) for count in counts]
        axes.stairs(shares, borders, color=SITE_COLORS[index % len(SITE_COLORS)], linewidth=1.7, label=site)
    axes.set_xlim(0.0, 1.0)
    axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_information(axes: Axes, probes: Sequence[SiteProbe]) -> None:
    _prepare(axes, "What a site tells of the teacher", "bits that a held-out probe proves")
    if not probes:
        _say_nothing(axes)
        return
    sites = list(dict.fromkeys(entry.site for entry in probes))
    rows: list[tuple[SiteProbe, dict[str, float | None]]] = [(entry, _told(entry)) for entry in probes]
    names = list(dict.fromkeys(name for _, told in rows for name in told))
    controls = [name for name in names if name not in INFORMATION_MARKS]
    for name in names:
        values = [_mean([told.get(name) for entry, told in rows if entry.site == site]) for site in sites]
        if all(map(math.isnan, values)):
            continue
        marker, color, size = INFORMATION_MARKS.get(name) or (
            CONTROL_MARKERS[controls.index(name) % 6],
            CONTROL_COLOR,
            6,
        )
        label = name if name in INFORMATION_MARKS else f"control: {name.replace('_', ' ')}"
        axes.plot(range(len(sites)), values, marker, color=color, markersize=size, markeredgewidth=1.8, label=label)
    highest = _mean([entry.target_entropy_bits for entry in probes])
    if not math.isnan(highest):
        axes.axhline(highest, color=SPINE_COLOR, linestyle="--", linewidth=1.2, label="all there is to know")
    _name_sites(axes, sites)
    axes.set_xlim(-0.6, len(sites) - 0.4)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _told(entry: SiteProbe) -> dict[str, float | None]:
    """Bits by what they are of, the site's own first."""
    return {
        "activations before": entry.preactivation_bits,
        "spikes": entry.spikes_bits,
        "dense twin": entry.dense_twin_bits,
        "untrained student": entry.untrained_bits,
        **entry.controls,
    }


def _draw_similarity(axes: Axes, matrix: Sequence[Sequence[float | None]]) -> None:
    _prepare(axes, "Debiased CKA of block outputs", "block of the student")
    axes.grid(visible=False)
    axes.set_xlabel("block of the teacher (e: embeddings)", color=QUIET_COLOR)
    if not matrix:
        _say_nothing(axes)
        return
    values = [[math.nan if value is None else value for value in row] for row in matrix]
    columns = len(values[0])
    image = axes.imshow(values, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", origin="lower")
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=QUIET_COLOR, labelsize=8)
    step = max(1, columns // 12)
    axes.set_xticks(
        range(0, columns, step), ["e" if place == 0 else str(place - 1) for place in range(0, columns, step)]
    )
    axes.set_yticks(range(0, len(values), max(1, len(values) // 12)))
    if columns * len(values) <= MOST_LABELLED_CELLS:
        for row, cells in enumerate(values):
            for column, value in enumerate(cells):
                color = "white" if value > 0.55 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)


def _draw_use(axes: Axes, causal: CausalUse, threshold: float) -> None:
    _prepare(axes, "Perplexity once spikes are replaced", "ratio to the untouched student")
    if not causal.replacements:
        _say_nothing(axes)
        return
    sites = list(dict.fromkeys(entry.site for entry in causal.replacements))
    ways = list(dict.fromkeys(entry.replacement for entry in causal.replacements))
    ways.sort(key=lambda way: way == HARMLESS)
    ratios = {(entry.site, entry.replacement): entry.ratio for entry in causal.replacements}
    width = 0.8 / len(ways)
    for index, way in enumerate(ways):
        heights = [_drawn(ratios.get((site, way))) for site in sites]
        places = [place + (index - (len(ways) - 1) / 2) * width for place in range(len(sites))]
        color = HARMLESS_COLOR if way == HARMLESS else REPLACEMENT_COLORS[index % len(REPLACEMENT_COLORS)]
        # Bars start at 1, the untouched student: those below it stand for a better one.
        tops = [height - 1.0 for height in heights]
        axes.bar(places, tops, width * 0.92, bottom=1.0, color=color, label=way.replace("_", " "))
    shown = [ratio for ratio in ratios.values() if ratio is not None and ratio > 0.0]
    if shown and max(shown) / min(1.0, *shown) > LOG_SCALE_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.axhline(1.0, color=QUIET_COLOR, linewidth=1.0)
    axes.axhline(threshold, color=QUIET_COLOR, linewidth=1.0, linestyle="--", label=f"asked for: {threshold:g}")
    _name_sites(axes, sites)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _name_sites(axes: Axes, sites: Sequence[str]) -> None:
    turned = len(sites) > MOST_LEVEL_NAMES
    axes.set_xticks(range(len(sites)), sites, rotation=30 if turned else 0, ha="right" if turned else "center")


def _drawn(value: float | None) -> float:
    """NaN, which matplotlib leaves out, where nothing was measured."""
    return math.nan if value is None else value


def _mean(values: Sequence[float | None]) -> float:
    """Of what was measured; NaN where nothing was."""
    measured = [value for value in values if value is not None]
    return fmean(measured) if measured else math.nan


def _say_nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=QUIET_COLOR)


def _prepare(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_ylabel(unit, color=QUIET_COLOR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SPINE_COLOR)
    axes.tick_params(which="both", colors=QUIET_COLOR, labelsize=9)
    axes.grid(axis="y", color=GRID_COLOR, linewidth=0.8)
    axes.set_axisbelow(True)
