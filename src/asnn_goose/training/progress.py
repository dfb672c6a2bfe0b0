"""The progress line of a run: where it stands, how fast it goes, and when it will be done."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SHOWN = {"relative_error": "relative error {:.3f}", "loss_nats": "loss {:.3f} nats", "perplexity": "ppl {:,.1f}"}
"""What the line says of a figure."""


class ProgressLine:
    """One live line on the console; away from a terminal, plain lines now and then.

    Args:
        console: Where it is shown.
        total_steps: Steps of the whole run.
        finished_steps: Steps already done by an earlier process.
    """

    def __init__(self, console: Console, total_steps: int, finished_steps: int) -> None:
        self.console = console
        self.total_steps = total_steps
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("distill", total=total_steps, completed=finished_steps, figures="")

    def __enter__(self) -> Self:
        """Show the line."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the line as it stands."""
        self._progress.stop()

    def step(self, done: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done)

    def figures(self, done: int, figures: Mapping[str, float], tokens_per_second: float, density: float) -> None:
        """Show the figures of the last logging interval; density is the fraction of non-zero spikes."""
        shown = [text.format(figures[name]) for name, text in SHOWN.items() if name in figures]
        text = " · ".join([*shown, f"{tokens_per_second:,.0f} tok/s", f"density {density:.2f}"])
        self._progress.update(self._task, figures=text)
        if not self.console.is_terminal:
            self.console.print(f"step {done}/{self.total_steps} · {text}", highlight=False)

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self.console.print(message, highlight=False)
