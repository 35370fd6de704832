"""The clock of a run: seconds of training, in total and by part of a step. Evaluation and checkpoints do not count."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

PARTS = {  # of a step: key in metrics.jsonl -> name in reports
    "wait_s": "data wait",
    "copy_s": "copy to the device",
    "forward_s": "forward and loss",
    "backward_s": "backward",
    "optimiser_s": "optimiser",
    "other_s": "other",  # read-back of losses, metrics, and on a GPU the gaps where Python launched too slowly
}
WAIT, COPY, FORWARD, BACKWARD, OPTIMISER, OTHER = PARTS

# Waiting is judged over a window: at least this many seconds of training, so that one slow file does not raise an alarm,
WINDOW_S = 30.0
# and at least this many steps, because a few long steps say little.
WINDOW_STEPS = 20
# A larger share of the window spent waiting for data is worth a warning.
WAIT_LIMIT = 0.03


class Clock:
    """Starts with the first batch; everything before it is start-up. Evaluation and the like run inside `stopped`.

    On a GPU the parts are times of the device, measured with CUDA events: "data wait" counts only while the device
    was idle. Take a lap only after a read-back, which waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = 0.0
        self._last: _Moment | None = None  # None before the first batch
        self._spans: list[tuple[str, _Moment, _Moment]] = []

    def mark(self, part: str) -> None:
        """Book the time since the last mark under `part`, a key of PARTS. The first WAIT starts the clock."""
        if self._last is None and part != WAIT:
            return  # start-up: no batch has arrived yet
        now = _Moment(self._device)
        if self._last is None:
            self._began = time.perf_counter()
        else:
            self._spans.append((part, self._last, now))
        self._last = now

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time inside the `with` does not count. On a GPU this waits for the device, at both ends."""
        if self._last is None:
            yield
            return
        self.mark(OTHER)
        self._synchronise()
        began = time.perf_counter()
        yield
        self._synchronise()
        # Move the lap's start forward by the time spent inside, so that the lap does not contain it.
        self._began += time.perf_counter() - began
        self._last = _Moment(self._device)

    def lap(self) -> tuple[float, dict[str, float]]:
        """Seconds of training since the last lap, and seconds by part up to the last mark.

        Call it after a read-back: an event that the device has not reached has no time yet.
        """
        parts = dict.fromkeys(PARTS, 0.0)
        if self._last is None:
            return 0.0, parts
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        for part, start, end in self._spans:
            parts[part] += end.seconds_since(start)
        self._spans.clear()
        return seconds, parts

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class _Moment:
    """A point in time of the process, or of a GPU's stream. Recording one takes microseconds and does not wait."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        self._seconds = time.perf_counter()
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def seconds_since(self, earlier: "_Moment") -> float:
        if self._event is None or earlier._event is None:
            return self._seconds - earlier._seconds
        return float(earlier._event.elapsed_time(self._event)) / 1000  # CUDA counts milliseconds


@dataclass(slots=True)
class WaitWatch:
    """Notices, once in a run, that the student waits too long for data."""

    seconds: float = 0.0  # of the window
    wait_s: float = 0.0
    steps: int = 0
    reported: bool = False

    def observe(self, *, seconds: float, wait_s: float, steps: int) -> float | None:
        """Add some steps. At the end of a window: its share of waiting, if that is too much for the first time.

        Args:
            seconds: of training that the steps took.
            wait_s: seconds of these spent waiting for data.

        Returns:
            A share from 0 to 1, or None if there is nothing to report.
        """
        self.seconds += seconds
        self.wait_s += wait_s
        self.steps += steps
        if self.seconds < WINDOW_S or self.steps < WINDOW_STEPS:
            return None
        share = self.wait_s / self.seconds
        self.seconds, self.wait_s, self.steps = 0.0, 0.0, 0
        if share <= WAIT_LIMIT or self.reported:
            return None
        self.reported = True
        return share
