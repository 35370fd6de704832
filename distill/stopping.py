"""SIGTERM, which schedulers send before they kill: a run ends between two steps, and keeps the last one's state."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class StopRequest:
    asked: bool = False


@contextmanager
def on_sigterm() -> Iterator[StopRequest]:
    """A request that SIGTERM makes. Outside of the main thread, where Python lets nobody listen, nobody makes it."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(*_: object) -> None:
        request.asked = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
