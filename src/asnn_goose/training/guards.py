"""What keeps a long run safe: non-finite steps skipped on the device, and a stop request that lets a step finish."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor

# Non-finite steps in a row after which the weights themselves are suspect.
ROLL_BACK_AFTER = 5
# Roll-backs after which the run is given up.
MOST_ROLL_BACKS = 3


class NonFiniteGuard:
    """Counts non-finite steps on the device; the host reads the counters once a logging interval.

    Args:
        device: Where gradients live.
    """

    def __init__(self, device: torch.device) -> None:
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.longest_row = torch.zeros((), dtype=torch.int64, device=device)

    def judge(self, gradient_norm: Tensor, loss: Tensor, *others: Tensor) -> Tensor:
        """1.0 if the step must be skipped, else 0.0: the `found_inf` a fused AdamW obeys. Counts it.

        `others` are gradients that the norm leaves out.
        """
        bad = ~(torch.isfinite(gradient_norm) & torch.isfinite(loss))
        for gradient in others:
            bad |= ~torch.isfinite(gradient)
        self.skipped += bad
        self.in_a_row = (self.in_a_row + 1) * bad
        self.longest_row = torch.maximum(self.longest_row, self.in_a_row)
        return bad.to(torch.float32)

    def read(self) -> "GuardReading":
        """The counters as integers, and a fresh start for the longest row; waits for the device."""
        reading = GuardReading(int(self.skipped), int(self.longest_row))
        self.longest_row = self.in_a_row.clone()
        return reading

    def forget_row(self) -> None:
        """Start counting rows anew, after a roll-back."""
        self.in_a_row.zero_()
        self.longest_row.zero_()


@dataclass(frozen=True)
class GuardReading:
    """Counters of a `NonFiniteGuard`: steps skipped in all, and the longest row of them since the last reading."""

    skipped: int
    longest_row: int

    @property
    def must_roll_back(self) -> bool:
        """Whether so many steps in a row were skipped that the weights are suspect."""
        return self.longest_row >= ROLL_BACK_AFTER


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block, SIGINT and SIGTERM only ask: the yielded function says whether a stop was asked for.

    A second SIGINT interrupts at once.
    """
    asked = False

    def note(signal_number: int, frame: FrameType | None) -> None:
        """Remember the request; the second interrupt does not wait."""
        nonlocal asked
        if asked and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
