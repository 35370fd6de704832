"""How long a run goes on: a number of steps, of epochs, or seconds of training.

A wall-clock budget becomes a number of steps as soon as the first ones are timed, so that the schedule has an
end and the run can be repeated with `--steps`; the clock stays the hard stop. Nothing here reads a clock: the
loop keeps the account (training alone; evaluation and checkpoints are outside), shares the first process's
with all, and every process decides the same from it.
"""

from typing import Any

from kdcache.distill.config import TrainConfig
from kdcache.distill.schedule import HOLD_STEPS, spent_fraction

WARM_UP_STEPS = 2  # not timed, at every start: caches fill, kernels are chosen, workers begin


class Budget:
    """The stopping rule of one run, and its place on the schedule.

    `step` is the number of steps done and `training_s` the seconds of training they took, over all starts.
    """

    def __init__(self, config: TrainConfig, *, n_images: int) -> None:
        self.total_steps = _asked_steps(config, n_images)
        """The steps of the whole run; None while a wall-clock budget is not yet timed."""
        self._seconds = config.budget_seconds
        self._warm_from_step = WARM_UP_STEPS
        self._seen_step = 0
        self._seen_s = 0.0
        self._timed_steps = 0
        self._timed_s = 0.0

    @property
    def is_timing(self) -> bool:
        """The number of steps is still to be found: `observe` every step, or warm-up counts as speed."""
        return self.total_steps is None

    def observe(self, step: int, training_s: float) -> None:
        """Take note of the account; at the end of the hold this fixes `total_steps` for good."""
        if self.total_steps is not None or self._seconds is None:
            return
        if self._seen_step >= self._warm_from_step:
            self._timed_steps += step - self._seen_step
            self._timed_s += training_s - self._seen_s
        self._seen_step, self._seen_s = step, training_s
        if training_s >= self._seconds:
            self.total_steps = step
        elif step >= HOLD_STEPS:
            self.total_steps = step + int((self._seconds - training_s) / self._step_s())

    def is_spent(self, step: int, training_s: float) -> bool:
        """All steps are done, or the time is up."""
        steps_are_done = self.total_steps is not None and step >= self.total_steps
        return steps_are_done or (self._seconds is not None and training_s >= self._seconds)

    def fraction(self, step: int) -> float:
        """The place of step `step` on the schedule, see schedule.spent_fraction."""
        return spent_fraction(step, self.total_steps)

    def state_dict(self) -> dict[str, Any]:
        """Numbers for a checkpoint."""
        return {
            "total_steps": self.total_steps,
            "seen_step": self._seen_step,
            "seen_s": self._seen_s,
            "timed_steps": self._timed_steps,
            "timed_s": self._timed_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; inside the hold, timing goes on after another warm-up."""
        self.total_steps = state["total_steps"]
        self._seen_step, self._seen_s = state["seen_step"], state["seen_s"]
        self._timed_steps, self._timed_s = state["timed_steps"], state["timed_s"]
        self._warm_from_step = self._seen_step + WARM_UP_STEPS

    def _step_s(self) -> float:
        """Seconds a step; over all of them where resuming or rare readings left none to time."""
        steps, seconds = self._timed_steps, self._timed_s
        if steps == 0:
            steps, seconds = self._seen_step, self._seen_s
        return max(seconds / steps, 1e-6)


def _asked_steps(config: TrainConfig, n_images: int) -> int | None:
    if config.epochs is not None:
        return -(-config.epochs * n_images // config.batch_size)  # the last epoch is read to its end
    return config.steps
