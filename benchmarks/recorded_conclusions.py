"""What runs of the recorded line say of what was concluded from it: a table in Markdown for each question.

Reads the files that `many_runs.py` leaves of `plans/recorded_smollm2.yaml`, DIR/NAME.json. Runs whose names differ in
the seed alone (NAME-s42, NAME-s43) are one row, whose figures are means, with the standard deviation where there are
several. A row is compared with the first one of its comparison, seed by seed; `million tokens` says whether both have
seen as many.

`of its teacher` is the best evaluation's perplexity over the teacher's, `at the end` the last one's. `text` is that of
the saved weights on the --text of `many_runs.py`, for which the teacher's has to be given where no evaluation has it.

    asnn-goose evaluate TEACHER --data TEST.txt --protocol recorded --window 256
    python benchmarks/recorded_conclusions.py runs/recorded --teacher-perplexity PERPLEXITY
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asnn_goose.checks import quotient
from asnn_goose.errors import GooseError, RunFolderError
from asnn_goose.results import Results
from spiking_frontier import FinishedRun, check_comparable, read_bundle

SEED = re.compile(r"-s\d+$")
ABSENT = "–"
AMPLITUDES = "amplitudes of k and v differ by"
"""The check whose value is their largest difference."""
FIXED = tuple(f"v12.1-fixed-{temperature}" for temperature in ("1", "1.25", "1.5", "1.575", "2", "4"))

QUESTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "The recorded line": (("v9-exact", "v12.1-exact", "v14.1-exact", "v14.2-exact", "v14.3-exact"),),
    "The recorded scan against the exact recurrence": tuple(
        (f"{version}-recorded", f"{version}-exact") for version in ("v9", "v12.1", "v14.3")
    ),
    "The ternary tax": tuple((f"{version}-dense", f"{version}-exact") for version in ("v9", "v14.1", "v14.3")),
    "CTKD against temperatures that know nothing": (("v12.1-exact", "v12.1-sign", *FIXED),),
    "v14.2's collapse": (("v14.2-exact", "v14.2-fixed-2", "v14.2-4x"),),
    "Capacity, other things equal": (
        ("v12.1-exact", "512-kl"), ("320-ce", "512-ce"), ("320-fdd", "512-fdd"), ("320-both", "512-both"),
    ),
    "Hard labels and feature dynamics, at one width": (
        ("v12.1-exact", "320-ce", "320-fdd", "320-both"), ("512-kl", "512-ce", "512-fdd", "512-both"),
    ),
    "POCL": (("v13-off", "v13-all-rows", "v13-exact"),),
    "Symmetry of k and v": (("v12.1-fixed-2", "v11.1-ones", "v11.1-jitter"),),
}  # fmt: skip
"""Titles, and what is compared: groups of runs, the first of which the others are compared with."""

COLUMNS = (
    "run", "seeds", "of its teacher", "at the end", "text", "compared", "temperature at the end", "steps", "best step",
    "million tokens", "held-out gap, nats", "largest difference of amplitudes",
)  # fmt: skip


@dataclass(frozen=True)
class SeededRun:
    """One run: its group's name, what it measured, and its perplexity over the teacher's on the text given to it."""

    group: str
    results: Results
    on_text: float | None


def read_runs(folder: Path, window: int, teacher_perplexity: float | None) -> dict[str, list[SeededRun]]:
    """The runs of a folder by group.

    Raises:
        GooseError: It has none, or such as do not compare.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise RunFolderError(f"{folder} holds no NAME.json of a finished run; benchmarks/many_runs.py writes them")
    found: dict[str, list[SeededRun]] = {}
    finished: list[FinishedRun] = []
    for path in paths:
        finished.append(read_bundle(path, path.stem))
        evaluations = json.loads(path.read_text(encoding="utf-8")).get("evaluations") or {}
        group = SEED.sub("", path.stem)
        on_text = ratio_on_text(evaluations.get(str(window)), teacher_perplexity)
        found.setdefault(group, []).append(SeededRun(group, finished[-1].results, on_text))
    check_comparable(finished)
    return found


def ratio_on_text(evaluation: Mapping[str, Any] | None, teacher_perplexity: float | None) -> float | None:
    """Student over teacher as an evaluation has it, or by the teacher's perplexity; None where neither is known."""
    if evaluation is None:
        return None
    stated: float | None = evaluation.get("ratio")
    return quotient(evaluation["models"][0]["perplexity"], teacher_perplexity) if stated is None else stated


def question_tables(found: Mapping[str, Sequence[SeededRun]]) -> str:
    """All tables for which there are runs, and at the end one of the runs that no question names."""
    asked = {name for groups in QUESTIONS.values() for group in groups for name in group}
    others = tuple((name,) for name in found if name not in asked)
    parts = []
    for title, groups in {**QUESTIONS, "Other runs": others}.items():
        rows = [row(name, group[0], found) for group in groups for name in group if name in found]
        if rows:
            lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
            parts.append(f"### {title}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines))
    return "\n".join(parts)


def row(name: str, first: str, found: Mapping[str, Sequence[SeededRun]]) -> tuple[str, ...]:
    """The cells of one group's row."""
    runs = [run.results for run in found[name]]
    gaps = [run.health.train_validation_gap.last for run in runs]
    reasons = ", ".join(sorted({run.stop_reason for run in runs}))
    return (
        name,
        str(len(runs)),
        spread(run.ratio.to_teacher for run in runs),
        spread(quotient(run.perplexities.last, run.teacher.perplexity) for run in runs),
        spread(run.on_text for run in found[name]),
        compared(found[name], found.get(first, ())) if name != first else ABSENT,
        spread(run.temperature.final for run in runs),
        f"{between(run.counters.steps_done for run in runs)} ({reasons})",
        between(run.perplexities.best_step for run in runs),
        spread((quotient(run.hardware.tokens, 1e6) for run in runs), ".1f"),
        spread(gaps, ".2f"),
        spread((amplitude_difference(run) for run in runs), ".3g"),
    )


def compared(runs: Sequence[SeededRun], first: Sequence[SeededRun]) -> str:
    """How many times the first group's ratio, over the seeds that both have."""
    ratios = {run.results.seed: run.results.ratio.to_teacher for run in first}
    shared = [run for run in runs if run.results.seed in ratios]
    times = spread(quotient(run.results.ratio.to_teacher, ratios[run.results.seed]) for run in shared)
    return times if times == ABSENT else f"{times} × {first[0].group}"


def amplitude_difference(results: Results) -> float | None:
    """The largest difference of amplitudes of k and v; None where they have none."""
    return next((check.value for check in results.checks if check.name == AMPLITUDES), None)


def spread(values: Iterable[float | None], form: str = ".3f") -> str:
    """The mean, and the standard deviation of several; of those that were measured."""
    known = [value for value in values if value is not None]
    if not known:
        return ABSENT
    mean = format(statistics.fmean(known), form)
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):{form}}"


def between(steps: Iterable[int | None]) -> str:
    """The least and the most of some steps, or the one that all are."""
    known = {step for step in steps if step is not None}
    return " to ".join(f"{step:,}" for step in sorted({min(known), max(known)})) if known else ABSENT


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what many_runs.py was given as --out")
    parser.add_argument("--window", type=int, default=256, help="of the evaluations that are shown")
    parser.add_argument("--teacher-perplexity", type=float, help="on the text of those evaluations")
    options = parser.parse_args(arguments)
    try:
        found = read_runs(options.folder, options.window, options.teacher_perplexity)
    except GooseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(question_tables(found), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
