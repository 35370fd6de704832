"""Learning-rate schedules, as functions of the fraction of the run that is done."""

import math
from collections.abc import Callable

# The learning rate stays at its start value for this many steps. A run with --budget times them to learn how many steps
# fit; runs with --steps do the same, so that --steps with that number repeats the --budget run exactly.
HOLD_STEPS = 10

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    # (fraction done, power) -> factor: 1 at the start, 0 at the end
    "poly": lambda fraction, power: (1 - fraction) ** power,  # DeepLab, arXiv 1606.00915, section 4.1
    "cosine": lambda fraction, power: (1 + math.cos(math.pi * fraction)) / 2,  # SGDR, arXiv 1608.03983, eq. 5
}


def spent_fraction(step: int, total_steps: int | None) -> float:
    """The fraction of the run that is done before step 0, 1, 2, ...: from 0 to 1.

    It is 0 for the first HOLD_STEPS steps, and as long as the total is unknown (None).
    """
    if total_steps is None or step <= HOLD_STEPS:
        return 0.0
    return min((step - HOLD_STEPS) / (total_steps - HOLD_STEPS), 1.0) if total_steps > HOLD_STEPS else 1.0


def learning_rate(schedule: str, fraction: float, *, start: float, end: float, power: float) -> float:
    """The learning rate at a fraction of the run, falling from `start` to `end`.

    `end` is added as in mmsegmentation's `PolyLR`: the factor scales `start - end`.

    Args:
        schedule: a key of SCHEDULES.
        fraction: see spent_fraction.
        power: exponent of "poly".
    """
    return end + (start - end) * SCHEDULES[schedule](fraction, power)
