"""Every version of the recorded line as a table, with our runs of it beside the record."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from asnn_goose.checks import quotient
from asnn_goose.config_recorded import Recorded, RecordedVersion, recorded_line
from asnn_goose.errors import RunFolderError
from asnn_goose.report.finished_runs import finished_runs
from asnn_goose.report.recorded_block import (
    EMPTY,
    about,
    show_best,
    show_headline,
    show_number,
    show_size,
    show_target,
)
from asnn_goose.results import Results

RECORD = ("version", "status", "date", "size", "parameters", "best @ step", "headline", "÷ teacher", "target", "lesson")
OURS = ("run", "teacher", "best", "÷ teacher", "checks")


@dataclass(frozen=True)
class OurRun:
    """A finished run that repeats a recorded version."""

    version: RecordedVersion
    folder: str
    results: Results


def our_runs(root: Path) -> list[OurRun]:
    """The finished runs in a folder whose recipe names a recorded version; unreadable ones are not seen.

    Raises:
        RunFolderError: There is no such folder.
    """
    found = []
    for run in finished_runs(root):
        try:
            results = run.read_results()
        except RunFolderError:
            continue
        if results.comparison.repeated is not None:
            found.append(OurRun(results.comparison.repeated.version, run.path.name, results))
    return found


def recorded_rows(runs: Sequence[OurRun] | None = None) -> list[tuple[str, ...]]:
    """The table's cells: a row for each version or, where there are several runs of it, one for each run.

    Args:
        runs: Runs to put beside the record; None leaves their columns out.
    """
    rows: list[tuple[str, ...]] = []
    for facts in recorded_line():
        cells = _recorded_cells(facts)
        if runs is None:
            rows.append(cells)
            continue
        own = [_our_cells(run) for run in runs if run.version == facts.version]
        rows += [(*cells, *ours) for ours in own or [(EMPTY,) * len(OURS)]]
    return rows


def columns(runs: Sequence[OurRun] | None = None) -> tuple[str, ...]:
    """The table's headings."""
    return RECORD if runs is None else (*RECORD, *(f"ours: {name}" for name in OURS))


def rich_table(runs: Sequence[OurRun] | None = None) -> Table:
    """The table for a terminal: what belongs together stands in one cell, so that it fits one of 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, show_lines=True, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("version", "status\ndate", "size", "headline, ÷ teacher\nbest @ step"):
        table.add_column(heading, no_wrap=True)
    if runs is not None:
        table.add_column("ours ÷ teacher\nrun\nchecks")
    table.add_column("target\nlesson recorded")
    for row in recorded_rows(runs):
        version, status, date, size, parameters, best, headline, ratio, target, lesson, *ours = map(escape, row)
        state, _, archived = status.partition(", ")
        student = headline if ratio == EMPTY else f"{headline}, {ratio}×"
        cells = [version, f"{state}\n{date}", f"{size}\n{parameters}", f"{student}\n{best}"]
        if ours:
            name, _, _, own_ratio, checks = ours
            cells.append(EMPTY if name == EMPTY else f"{own_ratio}×\n{name}\n{checks}")
        table.add_row(*cells, f"{target}\n{f'({archived}) ' if archived else ''}{lesson}")
    return table


def markdown_table(runs: Sequence[OurRun] | None = None) -> str:
    """The table for a document."""
    lines = [columns(runs), ["---"] * len(columns(runs)), *recorded_rows(runs)]
    return "".join(_markdown_line(cells) for cells in lines)


def gaps_table(runs: Iterable[OurRun]) -> str:
    """A Markdown table of runs alone: how far from its teacher each is, and how far the recorded one was."""
    heading = ("version", "run", "teacher", "÷ teacher", "recorded ÷ 44.6", "ours over recorded", "checks")
    lines = [heading, ["---"] * len(heading)]
    order = {facts.version: (place, facts) for place, facts in enumerate(recorded_line())}
    for run in sorted(runs, key=lambda run: (order[run.version][0], run.folder)):
        recorded, ours = order[run.version][1].ratio_to_teacher, run.results.ratio.to_teacher
        name, teacher, _, ratio, checks = _our_cells(run)
        lines.append(
            (run.version, name, teacher, ratio, show_number(recorded), show_number(quotient(ours, recorded)), checks)
        )
    return "".join(_markdown_line(cells) for cells in lines)


def _recorded_cells(facts: Recorded) -> tuple[str, ...]:
    return (
        facts.version,
        f"{facts.status}, archived" if facts.archived else facts.status,
        facts.date or EMPTY,
        show_size(facts),
        EMPTY if facts.size is None else f"{facts.size.parameters / 1e6:.2f}M",
        about(facts, "best", show_best(facts)),
        about(facts, "headline", show_headline(facts)),
        about(facts, "headline", show_number(facts.ratio_to_teacher)),
        show_target(facts.target) or EMPTY,
        facts.lesson or EMPTY,
    )


def _our_cells(run: OurRun) -> tuple[str, ...]:
    results = run.results
    passed = f"{sum(check.passed for check in results.checks)} of {len(results.checks)}"
    teacher = Path(results.teacher.name or EMPTY).name
    return run.folder, teacher, show_number(results.student.perplexity), show_number(results.ratio.to_teacher), passed


def _markdown_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
