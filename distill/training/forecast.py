"""Forecast: when a run's training ends, said once, as soon as its steps have a pace."""

import time

from kdcache.distill.training.budget import WARM_UP_STEPS
from kdcache.distill.units import duration_text

TIMED_STEPS = 10
LEAST_S = 60.0  # what ends sooner needs no forecast


class Forecast:
    """Takes note of the account of training time at every reading, and says its line at most once."""

    def __init__(self, step: int) -> None:
        self._warm_from = step + WARM_UP_STEPS
        self._from: tuple[int, float] | None = None
        self._said = False

    def observe(
        self,
        step: int,
        training_s: float,
        total_steps: int | None,  # None while the budget is not timed
    ) -> str | None:
        """The line, at the first reading after TIMED_STEPS timed steps; None before and after."""
        if self._from is None and step >= self._warm_from:
            self._from = (step, training_s)
        if self._said or self._from is None or total_steps is None or step < self._from[0] + TIMED_STEPS:
            return None
        self._said = True
        left_s = (total_steps - step) * (training_s - self._from[1]) / (step - self._from[0])
        if left_s < LEAST_S:
            return None
        ends = time.localtime(time.time() + left_s)
        at = time.strftime("%H:%M" if left_s < 12 * 3600 else "%A %H:%M", ends)
        return f"training ends in about {duration_text(left_s)}, at {at}; evaluation not counted"
