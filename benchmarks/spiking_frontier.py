"""What spikes cost and what they save: finished runs by perplexity, as a ratio to the teacher's, and by events.

Draws each run twice, against the events of an activation averaged over the sites that linear layers read, and over all
sites; a marker says the largest spike D. Prints the same figures as a table in Markdown. All runs must have one
protocol and one teacher. A run without spikes stands in the table alone; as a twin it is a horizontal line.

A run is a run folder, a folder with its results.json and recipe.yaml alone, or a JSON file that holds
{"results": what results.json says, "recipe": the recipe, as keys or as YAML text}; LABEL=PATH names it. A twin is a
run too, or a perplexity alone. Exit code 2, with one line, for what is none of these.

    python benchmarks/spiking_frontier.py --out frontier.png runs/a "D=4, all=bundles/b.json" --dense-twin runs/dense
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from pydantic import ValidationError

from asnn_goose.checks import quotient
from asnn_goose.config import Recipe
from asnn_goose.config_student import SITE_PRESETS
from asnn_goose.errors import ConfigError, GooseError, RunFolderError
from asnn_goose.presets import load_recipe, parse_yaml
from asnn_goose.recipe_errors import describe_errors
from asnn_goose.report.figures import DOTS_PER_INCH, LOG_SCALE_RATIO, QUIET_COLOR, STUDENT_COLOR, TEACHER_COLOR
from asnn_goose.results import Results
from asnn_goose.run_dir import RunDirectory

SIZE_INCHES = (11.0, 5.0)
MARKERS = "osD^vPX*"
"""Of D from 1 on, as far as a recipe's levels go."""
LOG_EVENTS_RATIO = 4.0
"""Events that span more than this factor are drawn on a logarithmic axis."""
RECURRENCE_SITES = SITE_PRESETS["recorded"]
"""What the recurrence reads; linear layers read all other sites."""
RECIPE_NAMES = ("config.yaml", "recipe.yaml")
TEACHER_TOLERANCE = 0.02
"""Relative: number types of one teacher move its perplexity less than this, another teacher or text moves it more."""
ABSENT = "–"
COLUMNS = (
    "run", "D", "sites", "encoder", "events per activation (linear sites)", "events per activation (all sites)",
    "density", "spike-fed share", "perplexity", "ratio to teacher", "ratio to dense twin",
)  # fmt: skip


@dataclass(frozen=True)
class FinishedRun:
    """A run that measured something, and what it is called."""

    label: str
    recipe: Recipe
    results: Results

    @property
    def levels(self) -> int | None:
        """The largest spike D, None where nothing is encoded."""
        spikes = self.recipe.spikes
        return spikes.levels if spikes.sites and spikes.encoder != "dense" else None

    @property
    def sites(self) -> str:
        """A preset's name, or the sites one by one."""
        chosen = self.recipe.spikes.sites
        if self.levels is None:
            return ABSENT
        named = [name for name, sites in SITE_PRESETS.items() if chosen in (name, sites)]
        return named[0] if named else ", ".join(chosen)

    @property
    def linear_events(self) -> float | None:
        """Events per activation, averaged over layers and the sites that linear layers read."""
        layers = self.results.spikes.layers
        return mean(site.events_per_activation for site in layers if site.site not in RECURRENCE_SITES)

    @property
    def all_events(self) -> float | None:
        """Events per activation, averaged over layers and all sites."""
        return mean(site.events_per_activation for site in self.results.spikes.layers)

    @property
    def to_teacher(self) -> float | None:
        """The student's perplexity over the teacher's."""
        return quotient(self.results.student.perplexity, self.results.teacher.perplexity)


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what was measured, None where nothing was."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def named_run(text: str) -> FinishedRun:
    """The run that `PATH` or `LABEL=PATH` names.

    Raises:
        GooseError: There is none.
    """
    label, _, path = ("", "", text) if Path(text).exists() else text.rpartition("=")
    return read_run(Path(path), label or Path(path).stem)


def read_run(path: Path, label: str) -> FinishedRun:
    """A run from its folder, or from a bundle of results and recipe.

    Raises:
        GooseError: It has no results, or no recipe, that this version reads.
    """
    if path.is_file():
        return read_bundle(path, label)
    results = RunDirectory(path).read_results()
    recipes = [path / name for name in RECIPE_NAMES if (path / name).is_file()]
    if not recipes:
        raise RunFolderError(f"{path} has results but no recipe; put it there as {' or '.join(RECIPE_NAMES)}")
    return FinishedRun(label, load_recipe(str(recipes[0]), []), results)


def read_bundle(path: Path, label: str) -> FinishedRun:
    """A run from one JSON file.

    Raises:
        GooseError: It is no such file.
    """
    try:
        bundle = json.loads(path.read_text(encoding="utf-8"))
        results, recipe = bundle["results"], bundle["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is no JSON file with the keys results and recipe; give a run folder") from error
    fields = parse_yaml(recipe, str(path)) if isinstance(recipe, str) else recipe
    try:
        known = Recipe.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe_errors(error)}") from error
    return FinishedRun(label, known, Results.from_json(json.dumps(results), str(path)))


def check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs whose ratios do not compare.

    Raises:
        ConfigError: Two have other windows, or teachers of another perplexity.
    """
    first = runs[0]
    for run in runs[1:]:
        one, other = (given.results.protocol.model_copy(update={"tokenizer": ""}) for given in (first, run))
        ratio = quotient(run.results.teacher.perplexity, first.results.teacher.perplexity)
        if one != other or (ratio is not None and abs(ratio - 1) > TEACHER_TOLERANCE):
            raise ConfigError(
                f"{first.label} and {run.label} were measured under other protocols or teachers, so that their ratios "
                "do not compare; draw them apart"
            )


def frontier_table(runs: Sequence[FinishedRun], twin_perplexity: float | None = None) -> str:
    """The runs as a table in Markdown; a share that was not measured is the planned one and says so."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *(_table_row(run, twin_perplexity) for run in runs)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _table_row(run: FinishedRun, twin_perplexity: float | None) -> tuple[str, ...]:
    spikes, perplexity = run.results.spikes, run.results.student.perplexity
    share = _shown(spikes.measured_spike_fed_mac_share, ".4f")
    if share == ABSENT and spikes.spike_fed_mac_share is not None:
        share = f"{spikes.spike_fed_mac_share:.4f} (planned)"
    to_twin = quotient(perplexity, twin_perplexity) or run.results.ratio.to_dense_twin
    return (
        run.label,
        ABSENT if run.levels is None else str(run.levels),
        run.sites,
        "dense" if run.levels is None else run.recipe.spikes.encoder,
        _shown(run.linear_events, ".3f"),
        _shown(run.all_events, ".3f"),
        _shown(spikes.density, ".3f"),
        share,
        _shown(perplexity, ",.3f"),
        _shown(run.to_teacher, ".3f"),
        _shown(to_twin, ".3f"),
    )


def _shown(value: float | None, form: str) -> str:
    return ABSENT if value is None else format(value, form)


def frontier_figure(runs: Sequence[FinishedRun], lines: Mapping[str, float]) -> Figure:
    """Two panels of ratio to teacher against events; `lines` are ratios by name, the teacher's 1 is always one."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    linear, everywhere = figure.subplots(1, 2, sharey=True)
    _draw_panel(linear, [(run, run.linear_events) for run in runs], lines, "Sites that linear layers read")
    _draw_panel(everywhere, [(run, run.all_events) for run in runs], lines, "All sites, k and v of the recurrence too")
    linear.set_ylabel("perplexity ÷ teacher's", color=QUIET_COLOR)
    everywhere.legend(frameon=False, fontsize=9)
    return figure


def _draw_panel(
    axes: Axes, runs: Sequence[tuple[FinishedRun, float | None]], lines: Mapping[str, float], title: str
) -> None:
    points = [
        (run.levels, events, run.to_teacher, run.label)
        for run, events in runs
        if run.levels is not None and events is not None and run.to_teacher is not None
    ]
    for levels in sorted({levels for levels, *_ in points}):
        x, y = zip(*((events, ratio) for found, events, ratio, _ in points if found == levels), strict=True)
        axes.scatter(x, y, marker=MARKERS[levels - 1], color=STUDENT_COLOR, s=42, label=f"D = {levels}", zorder=3)
    for _, events, ratio, label in points:
        axes.annotate(label, (events, ratio), xytext=(6, 5), textcoords="offset points", fontsize=8)
    for (name, ratio), style in zip({"teacher": 1.0, **lines}.items(), ("-", "--", ":"), strict=False):
        axes.axhline(ratio, color=TEACHER_COLOR, linewidth=1.2, linestyle=style, label=f"{name} {ratio:.3f}")
    if _spans([events for _, events, _, _ in points], LOG_EVENTS_RATIO):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if _spans([1.0, *lines.values(), *(ratio for _, _, ratio, _ in points)], LOG_SCALE_RATIO):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("events per activation", color=QUIET_COLOR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", colors=QUIET_COLOR, labelsize=9)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.margins(x=0.15)


def _spans(values: Sequence[float], ratio: float) -> bool:
    """Whether positive values span more than a factor."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > ratio


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The runs, and where the figure goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders or bundles, PATH or LABEL=PATH")
    parser.add_argument("--out", type=Path, required=True, help="the figure, .png or .svg")
    parser.add_argument("--dense-twin", help="run without spikes, or its perplexity: ratios are taken to it too")
    parser.add_argument("--quantized-twin", help="run with quantized activations, or its perplexity")
    return parser.parse_args(arguments)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, draw, print."""
    options = parse_arguments(arguments)
    given = {"dense twin": options.dense_twin, "quantized twin": options.quantized_twin}
    try:
        if options.out.suffix not in (".png", ".svg"):
            raise ConfigError(f"--out {options.out}: expected a name that ends in .png or .svg")
        runs = [named_run(text) for text in options.runs]
        known = {name: perplexity for name, text in given.items() if (perplexity := _number(text)) is not None}
        twins = {name: named_run(text) for name, text in given.items() if text is not None and name not in known}
        check_comparable([*runs, *twins.values()])
    except GooseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    known |= {name: run.results.student.perplexity for name, run in twins.items()}
    ratios = {name: quotient(known.get(name), runs[0].results.teacher.perplexity) for name in given}
    frontier_figure(runs, {name: ratio for name, ratio in ratios.items() if ratio is not None}).savefig(options.out)
    shown = [*runs, *(run for run in twins.values() if run.results not in [one.results for one in runs])]
    print(frontier_table(shown, known.get("dense twin")), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
