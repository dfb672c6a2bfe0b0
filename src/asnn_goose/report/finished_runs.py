"""Finished runs in a folder, to stand beside one another."""

from pathlib import Path

from asnn_goose.checks import quotient
from asnn_goose.errors import RunFolderError
from asnn_goose.health import PreviousRun
from asnn_goose.results import Results
from asnn_goose.run_dir import RunDirectory


def finished_runs(root: Path) -> list[RunDirectory]:
    """The finished run folders in a folder, the one that ended first before the others.

    Raises:
        RunFolderError: There is no such folder.
    """
    if not root.is_dir():
        raise RunFolderError(f"{root} is no folder of runs; give one that holds run folders, such as runs/")
    runs = [RunDirectory(path) for path in root.iterdir() if path.is_dir()]
    ended = [run for run in runs if run.is_finished and run.config_path.is_file()]
    return sorted(ended, key=lambda run: (run.results_path.stat().st_mtime_ns, run.path.name))


def previous_run(folder: RunDirectory, results: Results) -> PreviousRun | None:
    """The newest finished run of the same recipe beside a run that is about to end; unreadable ones are not seen.

    Args:
        folder: The run's own folder.
        results: What the run measured so far.
    """
    for run in reversed(finished_runs(folder.path.resolve().parent)):
        if run.path.name == folder.path.resolve().name:
            continue
        try:
            if run.environment().get("recipe") != results.recipe:
                continue
            before = run.read_results()
        except RunFolderError:
            continue
        then, now = before.throughput.tokens_per_second, results.throughput.tokens_per_second
        same_device = before.hardware.device == results.hardware.device
        return PreviousRun(
            folder=run.path.name,
            device=before.hardware.device,
            tokens_per_second=then,
            speed_ratio=quotient(now, then) if same_device else None,
        )
    return None
