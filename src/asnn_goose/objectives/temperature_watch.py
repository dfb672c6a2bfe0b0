"""Warns of a temperature that no longer tells anything: one that sits at a bound, or swings to and fro."""

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import pairwise

from asnn_goose.config_temperature import AdversarialTemperature, LearnedTemperature, Temperature

READINGS = 10
"""Logging intervals that are looked back on."""
BOUND_READINGS = 5
"""Readings in a row at a bound that are too many."""
BOUND_SHARE = 0.01
"""What counts as being at a bound, as a share of the distance between both."""
MOST_TURNS = 6
"""Turns between up and down, of at most `READINGS` - 2, that are no oscillation yet."""
LEAST_SWING = 0.01
"""Mean change from reading to reading, relative to the temperature, below which it hardly moves."""


class TemperatureWatch:
    """Looks at the temperature once a logging interval, and says each thing once.

    Args:
        chosen: The temperature of the stage; one that does not learn is left alone.
    """

    def __init__(self, chosen: Temperature) -> None:
        self.bounds: tuple[float, float] | None = None
        if isinstance(chosen, LearnedTemperature | AdversarialTemperature):
            self.bounds = chosen.lower, chosen.upper
        self._seen: deque[float] = deque(maxlen=READINGS)
        self._said: set[str] = set()

    def look(self, figures: Mapping[str, float]) -> Iterator[str]:
        """Warnings that were not given yet, after a reading of the figures that metrics show."""
        # A stage that aligns distills at no temperature.
        if self.bounds is None or "temperature" not in figures:
            return
        self._seen.append(figures["temperature"])
        for kind, message in (("bound", self._at_bound(*self.bounds)), ("swing", self._swinging())):
            if message is not None and kind not in self._said:
                self._said.add(kind)
                yield message

    def _at_bound(self, lower: float, upper: float) -> str | None:
        last, near = list(self._seen)[-BOUND_READINGS:], BOUND_SHARE * (upper - lower)
        for bound in (lower, upper):
            if len(last) == BOUND_READINGS and all(abs(seen - bound) <= near for seen in last):
                return (
                    f"warning: the temperature sits at its bound {bound:g}: it learns nothing there; give it an anchor "
                    "(objective.temperature.anchor), other bounds, or a fixed value"
                )
        return None

    def _swinging(self) -> str | None:
        seen = list(self._seen)
        changes = [after - before for before, after in pairwise(seen)]
        if len(seen) < READINGS or sum(map(abs, changes)) / len(changes) < LEAST_SWING * seen[-1]:
            return None
        turns = sum(before * after < 0 for before, after in pairwise(changes))
        if turns <= MOST_TURNS:
            return None
        return (
            f"warning: the temperature swings between {min(seen):.3g} and {max(seen):.3g}: lower "
            "objective.temperature.learning_rate"
        )
