"""Learning-rate schedules over the fraction of a run that is spent.

The rate stays at its start for the first HOLD_STEPS steps, however the length of the run was given: a run
with `--budget` times them to learn how many steps it holds, and `--steps` with that number repeats it.
"""

import math
from collections.abc import Callable

HOLD_STEPS = 10

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    # (fraction spent, power) -> factor, 1 at the start and 0 at the end
    "poly": lambda fraction, power: (1 - fraction) ** power,  # DeepLab, arXiv 1606.00915, section 4.1
    "cosine": lambda fraction, power: (1 + math.cos(math.pi * fraction)) / 2,  # SGDR, arXiv 1608.03983, eq. 5
}


def spent_fraction(step: int, total_steps: int | None) -> float:
    """How much of a run is over at step 0, 1, 2, ...: 0 to 1, 0 in the hold and while no total is known."""
    if total_steps is None or step <= HOLD_STEPS:
        return 0.0
    return min((step - HOLD_STEPS) / (total_steps - HOLD_STEPS), 1.0) if total_steps > HOLD_STEPS else 1.0


def learning_rate(schedule: str, fraction: float, *, start: float, end: float, power: float) -> float:
    """The rate at a fraction of the run: a key of SCHEDULES from `start` down to `end`, as mmsegmentation's poly."""
    return end + (start - end) * SCHEDULES[schedule](fraction, power)
