"""A rung: one length on one of two clocks.

`time` gives every contender the same seconds of training, `steps` the same number of steps. The steps of a rung are,
where nobody named them, those that the baseline reached in the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kdcache.cache.errors import UsageError

CLOCKS = ("time", "steps")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One length on one clock."""

    clock: str
    budget_s: float | None = None  # of training; for steps: of the baseline's run whose steps are taken
    steps: int | None = None  # as asked; None where the clock says, or the baseline

    @property
    def name(self) -> str:
        if self.clock == "time":
            return f"time-{self.budget_s:g}s"
        return f"steps-{self.steps}" if self.steps is not None else f"steps-of-{self.budget_s:g}s"

    @property
    def order(self) -> tuple[int, float]:
        """Those of the time before those of steps, then by seconds, or steps where they were named."""
        return CLOCKS.index(self.clock), self.budget_s or self.steps or 0.0


def make_rungs(
    budgets_s: Sequence[float], steps: Sequence[int], clocks: Sequence[str] = ()
) -> tuple[Rung, ...]:
    """The ladder. Without `clocks`, all that the lengths allow.

    Args:
        steps: of the clock of steps; empty for those that the baseline reaches in each budget.

    Raises:
        UsageError: a clock without a length, or a length without a clock.
    """
    clocks = clocks or (CLOCKS if budgets_s else ("steps",))
    if not budgets_s and not steps:
        raise UsageError(
            "nothing says how long a comparison is", hint="--budget 1h, --budget 30m,1h,2h or --steps 2000"
        )
    if ("time" in clocks) != bool(budgets_s) or (steps and "steps" not in clocks):
        raise UsageError(
            f"--clock {','.join(clocks)} does not go with the lengths given",
            hint="the clock time takes --budget; steps takes --steps, or the baseline's in each budget of the clock time",
        )
    timed = [Rung(clock="time", budget_s=budget_s) for budget_s in budgets_s]
    counted = [Rung(clock="steps", steps=count) for count in steps] or [
        Rung(clock="steps", budget_s=budget_s) for budget_s in budgets_s
    ]
    return (*timed, *(counted if "steps" in clocks else ()))
