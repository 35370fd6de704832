"""Progress: how the library tells whoever called it how far a long piece of work has come.

The command line draws it; a program may pass any function of its own.
"""

import time
from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, note); done grows to total, the note is a few words such as the step's loss."""


def silent(done: int, total: int, note: str) -> None:
    """The progress that nobody looks at."""


class Pace:
    """A Progress that is passed on and timed, from its first call on: what comes before that one warms up."""

    def __init__(self, progress: Progress = silent) -> None:
        self._progress = progress
        self._times: list[float] = []

    def __call__(self, done: int, total: int, note: str) -> None:
        self._times.append(time.monotonic())
        self._progress(done, total, note)

    @property
    def calls(self) -> int:
        return len(self._times)

    @property
    def seconds_per_call(self) -> float | None:
        """From each call to the next; None where there were fewer than two."""
        return (self._times[-1] - self._times[0]) / (self.calls - 1) if self.calls > 1 else None

    def seconds_since_first(self) -> float:
        """From the first call until now."""
        return time.monotonic() - self._times[0]
