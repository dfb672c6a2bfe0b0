"""Numbers that change from step to step, kept on the device at places that stay where they are.

A recorded CUDA graph reads them there, and a step that was skipped on the device is known there first.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from asnn_goose.config_schedules import AnySchedule, CosineSchedule, LinearSchedule, StepSchedule


class Span(NamedTuple):
    """A stage's part of the budget that schedules run over, in optimizer steps.

    `before` are the steps of that budget which earlier stages have, `steps` the stage's own, `whole` all of it.
    """

    before: int
    steps: int
    whole: int


def scheduled_value(schedule: AnySchedule, step: int, whole: int) -> float:
    """What a schedule says for the step after `step` finished ones of a budget of `whole`."""
    unit = 1 if schedule.unit == "steps" else whole
    match schedule:
        case StepSchedule():
            parts = len(schedule.values)
            places = schedule.at or tuple(number / parts for number in range(1, parts))
            return schedule.values[sum(step >= round(unit * place) for place in places)]
        case LinearSchedule() | CosineSchedule():
            begin, end = unit * schedule.begin, whole if schedule.end is None else unit * schedule.end
            share = min(1.0, max(0.0, (step - begin) / max(end - begin, 1e-9)))
            if isinstance(schedule, CosineSchedule):
                share = 0.5 * (1.0 - math.cos(math.pi * share))
            return schedule.initial + (schedule.final - schedule.initial) * share


class ScheduledNumbers:
    """The scheduled numbers of one stage, by name.

    Args:
        span: The stage's part of the budget; None where nothing is scheduled.
        device: Where the numbers are read.
    """

    def __init__(self, span: Span | None, device: torch.device) -> None:
        self.span, self.device = span, device
        self._tables: dict[str, Tensor] = {}
        self._numbers: dict[str, Tensor] = {}

    def follow(self, name: str, value: float | AnySchedule) -> float | Tensor:
        """The number as it is, or for a schedule a 0-d float32 tensor that `reach` keeps up to date."""
        if isinstance(value, int | float):
            return value
        schedule = value
        return self.tabulate(name, lambda step, whole: scheduled_value(schedule, step, whole))

    def tabulate(self, name: str, value: Callable[[int, int], float]) -> Tensor:
        """A 0-d float32 tensor that `reach` sets to value(finished steps, steps of the whole budget).

        Raises:
            ValueError: No span was given to tabulate.
        """
        if self.span is None:
            raise ValueError(f"{name} is scheduled: give the step the span of its stage")
        before, steps, whole = self.span
        values = [value(before + step, whole) for step in range(steps + 1)]
        self._tables[name] = torch.tensor(values, dtype=torch.float32, device=self.device)
        self._numbers[name] = self._tables[name][0].clone()
        return self._numbers[name]

    def reach(self, done: int, lost: Tensor | None = None) -> None:
        """Set what holds after `done` steps of the stage, `lost` of which a device knows to have been skipped.

        Nothing waits for the device.
        """
        if not self._tables:
            return
        place = torch.full((), done, device=self.device) if lost is None else done - lost
        for name, table in self._tables.items():
            self._numbers[name].copy_(table.take(place.clamp(0, len(table) - 1)))

    def figures(self) -> dict[str, Tensor]:
        """The scheduled numbers as they are now."""
        return dict(self._numbers)
