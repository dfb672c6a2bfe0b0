"""Many runs of one plan, side by side on all GPUs, each evaluated on one text, each in one small file in the end.

A plan is a YAML file: `common` are overrides for all runs, `runs` are by name a `recipe` and its `overrides`. A run
starts when a lane is free; lanes take the GPUs in turn. What was interrupted goes on, and a run whose DIR/NAME.json is
complete is not run again, on whatever machine that was and whatever its overrides are by now. That file holds the run's
recipe, its results, its metrics and, with --text, what `asnn-goose evaluate` says of it at each window on that very
text; `spiking_frontier.py` reads it. --drop-checkpoints deletes finished runs' checkpoints, most of their size; their
weights stay. Exit code 1 if a run failed, 2 for a plan that is none.

    python benchmarks/many_runs.py benchmarks/plans/spiking_smollm2.yaml --out runs/frontier --lanes 2 data.path=FILE
"""

import argparse
import fnmatch
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asnn_goose.errors import ConfigError, GooseError
from asnn_goose.presets import parse_yaml
from asnn_goose.run_dir import RunDirectory

PROGRAM = (sys.executable, "-m", "asnn_goose")
KEYS = {"recipe", "overrides"}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan, with the plan's own overrides before its."""

    name: str
    recipe: str
    overrides: tuple[str, ...]

    def command(self, folder: Path) -> list[str]:
        """What trains it, from its beginning or from where it was interrupted."""
        command = [*PROGRAM, "distill", self.recipe, *self.overrides, "--out", str(folder)]
        return [*command, "--resume"] if (folder / "config.yaml").is_file() else command


def read_plan(path: Path, overrides: Sequence[str]) -> list[PlannedRun]:
    """The runs of a plan, in its order; `overrides` stand before each run's own.

    Raises:
        ConfigError: The file is no plan.
    """
    try:
        plan = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a plan, a YAML file") from error
    runs = plan.get("runs") if isinstance(plan, dict) else None
    if not isinstance(runs, dict) or not all(isinstance(run, dict) and set(run) <= KEYS for run in runs.values()):
        raise ConfigError(f"{path}: expected `runs`, by name a `recipe` and its `overrides`, and perhaps `common`")
    common = (*plan.get("common", ()), *overrides)
    return [
        PlannedRun(str(name), str(run.get("recipe", name)), (*common, *run.get("overrides", ())))
        for name, run in runs.items()
    ]


def chosen(runs: Sequence[PlannedRun], patterns: Sequence[str] | None) -> list[PlannedRun]:
    """The runs whose names one of the patterns (as a shell's: * and ?) fits, or all, in the plan's order.

    Raises:
        ConfigError: A pattern that fits none.
    """
    known = [run.name for run in runs]
    wanted = [fnmatch.filter(known, pattern) for pattern in patterns or ("*",)]
    missed = next((pattern for pattern, names in zip(patterns or ("*",), wanted, strict=True) if not names), None)
    if missed is not None:
        raise ConfigError(f"--only {missed}: the plan has no such run; it has {', '.join(known)}")
    return [run for run in runs if any(run.name in names for names in wanted)]


def perform(run: PlannedRun, out: Path, gpu: str | None, text: Path | None, windows: Sequence[int]) -> bool:
    """Train one run, evaluate it, and bundle what is known of it; whether all of that went well."""
    folder, environment = out / run.name, dict(os.environ)
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with (out / f"{run.name}.log").open("a", encoding="utf-8") as log:
        if not (folder / "results.json").is_file():
            done = subprocess.run(run.command(folder), env=environment, stdout=log, stderr=log, check=False)
            if done.returncode != 0:
                return False
        measured = {str(window): evaluated(folder, text, window, environment, log) for window in windows if text}
    known = bundle(folder, measured) | {"text_sha256": sha256_of(text)}
    (out / f"{run.name}.json").write_text(json.dumps(known), encoding="utf-8")
    return None not in measured.values()


def is_finished(out: Path, run: PlannedRun, text: Path | None, windows: Sequence[int]) -> bool:
    """Whether a run's file is there and has every evaluation that is asked for, of this text where it says which."""
    try:
        known = json.loads((out / f"{run.name}.json").read_text(encoding="utf-8"))
        measured = known["evaluations"]
    except (OSError, ValueError, KeyError):
        return False
    if text is None:
        return True
    same = known.get("text_sha256") in (None, sha256_of(text))
    return same and all(measured.get(str(window)) for window in windows)


def sha256_of(text: Path | None) -> str | None:
    """Of the file's bytes."""
    return None if text is None else hashlib.sha256(text.read_bytes()).hexdigest()


def evaluated(
    folder: Path, text: Path | None, window: int, environment: Mapping[str, str], log: Any
) -> dict[str, Any] | None:
    """What `asnn-goose evaluate --json` says of a finished run; None if it failed."""
    command = [*PROGRAM, "evaluate", str(folder), "--data", str(text), "--window", str(window), "--json"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
    found: dict[str, Any] | None = json.loads(done.stdout) if done.returncode == 0 else None
    return found


def bundle(folder: Path, measured: Mapping[str, Any]) -> dict[str, Any]:
    """A run folder's recipe, results and metrics, and its evaluations by window, as one mapping."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "recipe": (folder / "config.yaml").read_text(encoding="utf-8"),
        "results": json.loads((folder / "results.json").read_text(encoding="utf-8")),
        "evaluations": dict(measured),
        "metrics": [json.loads(line) for line in lines],
    }


def told(out: Path, run: PlannedRun) -> str:
    """One line of a finished run: its ratio on its own text, its events, its perplexities on the given text."""
    known = json.loads((out / f"{run.name}.json").read_text(encoding="utf-8"))
    results, figures = known["results"], {w: m and m["models"][0] for w, m in known["evaluations"].items()}
    shown = [f"{window}: {model['perplexity']:.3f}" for window, model in figures.items() if model]
    ratio, events = results["ratio"]["to_teacher"], results["spikes"]["events_per_activation"]
    return f"{run.name}: {ratio:.3f}x its teacher, {events} events an activation {'; '.join(shown)}".rstrip()


def work(
    waiting: "queue.SimpleQueue[PlannedRun]", failed: list[str], gpu: str | None, options: argparse.Namespace
) -> None:
    """One lane: take a run, perform it, say so, until none is left."""
    while True:
        try:
            run = waiting.get_nowait()
        except queue.Empty:
            return
        if perform(run, options.out, gpu, options.text, options.windows):
            if options.drop_checkpoints:
                drop_checkpoints(options.out / run.name)
            print(told(options.out, run), flush=True)
        else:
            failed.append(run.name)
            print(f"{run.name}: failed, see {options.out / run.name}.log", flush=True)


def drop_checkpoints(folder: Path) -> None:
    """Delete a finished run's checkpoints, if it has any here."""
    checkpoints = RunDirectory(folder).checkpoints
    if checkpoints.is_dir():
        shutil.rmtree(checkpoints)


def visible_gpus() -> list[str]:
    """Names of the GPUs, as CUDA_VISIBLE_DEVICES takes them; none where there is none."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    import torch  # Only here: a plan is read, or refused, without it.

    return [str(index) for index in range(torch.cuda.device_count())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, lane by lane."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("overrides", nargs="*", help="key.path=value for all of them")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--only", nargs="+", help="names of the plan's runs, or patterns of names; default all")
    parser.add_argument("--lanes", type=int, default=1, help="runs at once on each GPU")
    parser.add_argument("--text", type=Path, help="text on which finished runs are evaluated")
    parser.add_argument("--windows", type=int, nargs="+", default=[256, 1024], help="tokens of its windows")
    parser.add_argument("--drop-checkpoints", action="store_true", help="delete those of a run that has finished")
    options = parser.parse_intermixed_args(arguments)
    try:
        runs = chosen(read_plan(options.plan, options.overrides), options.only)
    except GooseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    waiting, failed = queue.SimpleQueue[PlannedRun](), list[str]()
    for run in runs:
        if not is_finished(options.out, run, options.text, options.windows):
            waiting.put(run)
            continue
        print(f"{run.name}: finished before", flush=True)
        if options.drop_checkpoints:
            drop_checkpoints(options.out / run.name)
    gpus: list[str | None] = [*visible_gpus()] or [None]
    places = gpus * options.lanes
    lanes = [threading.Thread(target=work, args=(waiting, failed, gpu, options)) for gpu in places]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
