"""The clock of a run: seconds of training, with waiting for data shown apart and everything else left out."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Runs from the first batch on: what comes before is start-up. `stopped` is for evaluation and the like.

    On a GPU the training process runs ahead of the device. Laps are right because they end with a read-back, which
    waits for it; the wait for data is an upper bound, since the device may still have been busy.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = time.perf_counter()
        self._wait_s = 0.0
        self._runs = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as training and as waiting for data; the first time it is start-up and counts as none."""
        began = time.perf_counter()
        yield
        if self._runs:
            self._wait_s += time.perf_counter() - began
        else:
            self._began, self._runs = time.perf_counter(), True

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time inside does not count."""
        self._synchronise()
        began = time.perf_counter()
        yield
        self._synchronise()
        self._began += time.perf_counter() - began

    def lap(self) -> tuple[float, float]:
        """Seconds of training, and of these waiting for data, since the last lap."""
        now = time.perf_counter()
        lap = now - self._began, self._wait_s
        self._began, self._wait_s = now, 0.0
        return lap

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
