"""When a run ends: after a number of steps, of epochs, or of seconds of training.

A wall-clock budget becomes a number of steps as soon as the first steps are timed: the schedule needs an end, and
`--steps` with that number repeats the run. The clock stays the hard limit. Nothing here reads a clock. The loop passes
in the training time of the first process, the same in all processes, so all decide the same.
"""

from typing import Any

from kdcache.distill.config import TrainConfig
from kdcache.distill.schedule import HOLD_STEPS, spent_fraction

WARM_UP_STEPS = 2  # slow at every start, so not timed: caches fill, kernels are chosen, workers start


class Budget:
    """The stopping rule of one run, and its place on the schedule.

    Everywhere here, `step` is the number of steps done and `training_s` the seconds of training that they took, summed
    over all starts of the run.
    """

    def __init__(self, config: TrainConfig, *, n_images: int) -> None:
        self.total_steps = _asked_steps(config, n_images)
        """The steps of the whole run; None as long as a wall-clock budget is still timing the first ones."""
        self._seconds = config.budget_seconds
        self._warm_from_step = WARM_UP_STEPS
        self._seen_step = 0
        self._seen_s = 0.0
        self._timed_steps = 0
        self._timed_s = 0.0

    @property
    def is_timing(self) -> bool:
        """True as long as the number of steps is unknown. Then call `observe` after every step, to leave out warm-up."""
        return self.total_steps is None

    def observe(self, step: int, training_s: float) -> None:
        """Note the training time. After HOLD_STEPS steps, or when the time is up, this sets `total_steps`, once."""
        if self.total_steps is not None or self._seconds is None:
            return
        if self._seen_step >= self._warm_from_step:
            self._timed_steps += step - self._seen_step
            self._timed_s += training_s - self._seen_s
        self._seen_step, self._seen_s = step, training_s
        if training_s >= self._seconds:
            self.total_steps = step  # the time was up before the timing was done
        elif step >= HOLD_STEPS:
            self.total_steps = step + int((self._seconds - training_s) / self._step_s())

    def is_spent(self, step: int, training_s: float) -> bool:
        """True if all steps are done or the time is up."""
        steps_are_done = self.total_steps is not None and step >= self.total_steps
        return steps_are_done or (self._seconds is not None and training_s >= self._seconds)

    def fraction(self, step: int) -> float:
        """The fraction of the schedule that is done at a step, see schedule.spent_fraction."""
        return spent_fraction(step, self.total_steps)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, as numbers."""
        return {
            "total_steps": self.total_steps,
            "seen_step": self._seen_step,
            "seen_s": self._seen_s,
            "timed_steps": self._timed_steps,
            "timed_s": self._timed_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint. If the timing was not done, it continues after another warm-up."""
        self.total_steps = state["total_steps"]
        self._seen_step, self._seen_s = state["seen_step"], state["seen_s"]
        self._timed_steps, self._timed_s = state["timed_steps"], state["timed_s"]
        self._warm_from_step = self._seen_step + WARM_UP_STEPS

    def _step_s(self) -> float:
        """Seconds a step, without warm-up if possible."""
        steps, seconds = self._timed_steps, self._timed_s
        if steps == 0:  # resumed shortly before HOLD_STEPS: every step since then was warm-up
            steps, seconds = self._seen_step, self._seen_s
        return max(seconds / steps, 1e-6)  # above 0, to divide by


def _asked_steps(config: TrainConfig, n_images: int) -> int | None:
    if config.epochs is not None:
        # Rounded up, to read the last epoch to its end.
        return -(-config.epochs * n_images // config.batch_size)
    return config.steps
