"""The clock of a run: seconds of training, and by the part of a step that they went to; nothing else counts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

PARTS = {  # of a step, as metrics name their seconds
    "wait_s": "data wait",
    "copy_s": "copy to the device",
    "forward_s": "forward and loss",
    "backward_s": "backward",
    "optimiser_s": "optimiser",
    "other_s": "other",  # reading losses back, metrics, and on a GPU what the process was too slow to launch
}
WAIT, COPY, FORWARD, BACKWARD, OPTIMISER, OTHER = PARTS

WINDOW_S = (
    30.0  # of training, over which waiting is judged: longer than a read-ahead or a slow file takes to pass
)
WINDOW_STEPS = 20
WAIT_LIMIT = 0.03


class Clock:
    """Runs from the first batch on: what comes before is start-up. `stopped` is for evaluation and the like.

    On a GPU the process runs ahead of the device. A mark is an event among the device's work there, so parts are the
    device's own time: it has waited for data only where it stood still. Laps are right because they come after a
    read-back, which waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = 0.0
        self._last: _Moment | None = None  # None before the first batch
        self._spans: list[tuple[str, _Moment, _Moment]] = []

    def mark(self, part: str) -> None:
        """The time since the last mark was `part`, a key of PARTS. The first batch, waited for, starts the clock."""
        if self._last is None and part != WAIT:
            return
        now = _Moment(self._device)
        if self._last is None:
            self._began = time.perf_counter()
        else:
            self._spans.append((part, self._last, now))
        self._last = now

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time inside does not count."""
        if self._last is None:
            yield
            return
        self.mark(OTHER)
        self._synchronise()
        began = time.perf_counter()
        yield
        self._synchronise()
        self._began += time.perf_counter() - began
        self._last = _Moment(self._device)

    def lap(self) -> tuple[float, dict[str, float]]:
        """Seconds of training since the last lap, and those of its parts up to the last mark. After a read-back."""
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
    """A point in time: of the process, or in a GPU's work, where it costs some microseconds and waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        self._seconds = time.perf_counter()
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def seconds_since(self, earlier: "_Moment") -> float:
        if self._event is None or earlier._event is None:
            return self._seconds - earlier._seconds
        return float(earlier._event.elapsed_time(self._event)) / 1000


@dataclass(slots=True)
class WaitWatch:
    """Tells, once a run, that the student stands still for data."""

    seconds: float = 0.0  # of the window
    wait_s: float = 0.0
    steps: int = 0
    told: bool = False

    def observe(self, *, seconds: float, wait_s: float, steps: int) -> float | None:
        """The share of a window that went into waiting, at its end, where it is too much and was not told before."""
        self.seconds += seconds
        self.wait_s += wait_s
        self.steps += steps
        if self.seconds < WINDOW_S or self.steps < WINDOW_STEPS:
            return None
        share = self.wait_s / self.seconds
        self.seconds, self.wait_s, self.steps = 0.0, 0.0, 0
        if share <= WAIT_LIMIT or self.told:
            return None
        self.told = True
        return share
