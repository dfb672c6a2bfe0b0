"""What steps found since the last log, kept on the device until the host asks."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


class IntervalSums:
    """Sums of figures over the steps of a logging interval; a skipped step adds nothing."""

    def __init__(self) -> None:
        self.steps = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, figures: Mapping[str, Tensor], skipped: Tensor) -> None:
        """Add a step's figures; `skipped` is 1.0 on the device if it was not taken, else 0.0."""
        for name, figure in figures.items():
            kept = torch.where(skipped.bool().squeeze(), torch.zeros_like(figure), figure)
            self._sums[name] = kept + self._sums[name] if name in self._sums else kept
        self.steps += 1

    def means(self, accelerator: Accelerator, skipped: int) -> dict[str, float]:
        """Means over the steps that were taken and over all processes, which ask together."""
        sums = accelerator.reduce(torch.stack(tuple(self._sums.values())), "mean")
        return dict(zip(self._sums, (sums / max(self.steps - skipped, 1)).tolist(), strict=True))

    def clear(self) -> None:
        """Begin anew."""
        self.steps = 0
        self._sums.clear()
