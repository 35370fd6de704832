"""Progress: how the library reports how far a long task is.

The command line draws a bar from it. A program may pass any function with the same arguments.
"""

import time
from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, note): `done` grows to `total`; the note is a few words, such as the loss of the step."""


def silent(done: int, total: int, note: str) -> None:
    """A Progress that shows nothing."""


class Pace:
    """A Progress that times its calls and passes them on. Time before the first call is not counted: it warms up."""

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
        """Mean seconds between two calls; None after fewer than two."""
        return (self._times[-1] - self._times[0]) / (self.calls - 1) if self.calls > 1 else None

    def seconds_since_first(self) -> float:
        """Seconds from the first call until now."""
        return time.monotonic() - self._times[0]
