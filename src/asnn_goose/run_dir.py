"""The run folder: what a run leaves on disk, written so that a crash at any moment leaves it readable."""

import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from asnn_goose.errors import RunFolderError
from asnn_goose.presets import parse_yaml
from asnn_goose.recipe_errors import show
from asnn_goose.results import Results

RUN_DATE = r"(\d{8}-\d{6})(?:-(\d+))?"


@dataclass(frozen=True)
class RunDirectory:
    """One run's folder; make it with `create`, come back to it with `open`."""

    path: Path

    @classmethod
    def create(cls, path: Path, recipe_yaml_text: str, environment: Mapping[str, Any]) -> "RunDirectory":
        """A new run folder that holds the resolved recipe and the environment.

        config.yaml is written last: a folder that has it is complete.

        Args:
            path: A folder that does not exist, or is empty; missing parents are made.
            recipe_yaml_text: The resolved recipe, as `recipe_yaml` writes it.
            environment: What `collect_environment` found, with what the caller adds.

        Raises:
            RunFolderError: The folder is not empty, or cannot be written; nothing is left behind.
        """
        run = cls(Path(path))
        with _one_line_errors(run.path):
            is_new = not run.path.exists()
            run.path.mkdir(parents=True, exist_ok=True)
            if any(run.path.iterdir()):
                raise RunFolderError(
                    f"run folder {run.path} is not empty; continue its run with --resume or give another --out"
                )
            try:
                write_text_atomically(run.environment_path, json.dumps(environment, indent=2) + "\n")
                write_text_atomically(run.config_path, recipe_yaml_text)
            except BaseException:
                run.environment_path.unlink(missing_ok=True)
                if is_new:
                    run.path.rmdir()
                raise
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """The run folder at a path.

        Raises:
            RunFolderError: There is no run folder.
        """
        run = cls(Path(path))
        if not run.config_path.is_file():
            raise RunFolderError(f"{path} is no run folder: it has no {run.config_path.name}; give a folder of runs/")
        return run

    @property
    def config_path(self) -> Path:
        """The resolved recipe."""
        return self.path / "config.yaml"

    @property
    def environment_path(self) -> Path:
        """Versions, hardware, git hash, seed."""
        return self.path / "environment.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints; made by whoever writes the first."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Folder of the trained student; made by whoever saves it."""
        return self.path / "model"

    @property
    def figures(self) -> Path:
        """Folder of the pictures; made by whoever draws the first."""
        return self.path / "figures"

    @property
    def results_path(self) -> Path:
        """The typed results."""
        return self.path / "results.json"

    @property
    def report_path(self) -> Path:
        """The page to read."""
        return self.path / "report.html"

    @property
    def is_finished(self) -> bool:
        """Whether the run wrote its results."""
        return self.results_path.is_file()

    def append_metrics(self, step: int, **values: float | str | Mapping[str, Sequence[Any]] | None) -> None:
        """Add one line to metrics.jsonl; it is in the file when this returns.

        JSON has no NaN and no infinity: both are written as null, so null means not finite or not measured.

        Raises:
            RunFolderError: The line cannot be written.
        """
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with _one_line_errors(self.path), self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without a last one that was cut off while it was written.

        Raises:
            RunFolderError: Another line is damaged.
        """
        if not self.metrics_path.exists():
            return []
        with _one_line_errors(self.path):
            lines = self.metrics_path.read_bytes().splitlines()
        parsed = []
        for number, line in enumerate(lines, start=1):
            try:
                parsed.append(_metrics_line(line))
            except (ValueError, TypeError, KeyError) as error:
                if number == len(lines):
                    break
                raise RunFolderError(f"{self.metrics_path}, line {number} is damaged; delete that line") from error
        return parsed

    def cut_metrics(self, step: int) -> None:
        """Drop the lines after a step, and a torn last one, so that a resumed run writes them anew.

        Raises:
            RunFolderError: The file is damaged elsewhere, or cannot be written.
        """
        kept = [line for line in self.metrics() if line["step"] <= step]
        with _one_line_errors(self.path):
            write_text_atomically(self.metrics_path, "".join(json.dumps(line) + "\n" for line in kept))

    def recipe_yaml_text(self) -> str:
        """The resolved recipe of this run.

        Raises:
            RunFolderError: It cannot be read.
        """
        with _one_line_errors(self.path):
            return self.config_path.read_text(encoding="utf-8")

    def environment(self) -> dict[str, Any]:
        """What the run ran on.

        Raises:
            RunFolderError: It cannot be read.
        """
        with _one_line_errors(self.path):
            return dict(json.loads(self.environment_path.read_text(encoding="utf-8")))

    def check_same_recipe(self, recipe_yaml_text: str) -> None:
        """Refuse to resume with a resolved recipe that is not this run's.

        Raises:
            RunFolderError: A key differs; the line names the first one and both its values.
        """
        recorded = parse_yaml(self.recipe_yaml_text(), str(self.config_path))
        given = parse_yaml(recipe_yaml_text, "the recipe")
        for path, before, now in _differences(recorded, given, ""):
            raise RunFolderError(
                f"{self.path} was started with {path}={before}, now {path}={now}; "
                "resume it with its own recipe, or give another --out"
            )

    def discard_if_empty(self) -> None:
        """Remove the folder of a run that failed before it had anything to keep: no checkpoint, no metrics."""
        if self.checkpoints.exists() or self.is_finished or self.metrics():
            return
        for path in (self.config_path, self.environment_path, self.metrics_path):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def write_results(self, results: Results) -> None:
        """Write results.json, which also marks the run as finished.

        Raises:
            RunFolderError: It cannot be written.
        """
        with _one_line_errors(self.path):
            write_text_atomically(self.results_path, results.to_json())

    def read_results(self) -> Results:
        """The run's results.

        Raises:
            RunFolderError: The run has not finished, or the file is damaged or of another schema version.
        """
        if not self.is_finished:
            raise RunFolderError(f"{self.path} has no results.json yet; finish its run with --resume")
        with _one_line_errors(self.path):
            return Results.from_json(self.results_path.read_text(encoding="utf-8"), str(self.results_path))


def default_run_path(root: Path, recipe_name: str, now: datetime) -> Path:
    """`<root>/<recipe>-<YYYYmmdd-HHMMSS>`, with -2, -3, ... where that folder exists."""
    first = root / f"{recipe_name}-{now:%Y%m%d-%H%M%S}"
    path, number = first, 1
    while path.exists():
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path


def newest_unfinished(root: Path, recipe_name: str) -> RunDirectory | None:
    """The recipe's newest run folder under `root` that has no results, or None; other folders are not seen."""
    pattern = re.compile(re.escape(recipe_name) + "-" + RUN_DATE)
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        match = pattern.fullmatch(path.name)
        run = RunDirectory(path)
        if match and run.config_path.is_file() and not run.is_finished:
            found.append(((match[1], int(match[2] or 1)), run))
    return max(found, key=lambda dated: dated[0])[1] if found else None


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a file's text: a reader, and whoever comes after a crash, sees the old text or the new one.

    Raises:
        OSError: The file cannot be written; the old one is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn what the file system or a damaged file says into one line about the run folder."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFolderError(
                f"run folder {path}: the disk is full; free some space or give another --out"
            ) from error
        reason = error.strerror or type(error).__name__
        raise RunFolderError(f"run folder {path} cannot be used ({reason}); give another --out") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunFolderError(f"run folder {path} holds a damaged file ({error}); start a new run") from error


def _metrics_line(line: bytes) -> dict[str, Any]:
    values = dict(json.loads(line))
    values["step"] = int(values["step"])
    return values


def _differences(before: Any, now: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Dotted paths at which two resolved recipes differ, with both values, in the order of the first."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            inner = f"{path}.{key}" if path else str(key)
            if key in before and key in now:
                yield from _differences(before[key], now[key], inner)
            else:
                yield inner, _show_key(before, key), _show_key(now, key)
    elif before != now or type(before) is not type(now):
        yield path, show(before), show(now)


def _show_key(section: dict[str, Any], key: str) -> str:
    return show(section[key]) if key in section else "(absent)"
