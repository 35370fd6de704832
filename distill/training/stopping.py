"""SIGTERM as a request to stop, so that a run saves its state before it ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class StopRequest:
    """`asked` becomes True on SIGTERM. The loop looks at it at every read-back."""

    asked: bool = False


@contextmanager
def on_sigterm() -> Iterator[StopRequest]:
    """Turn SIGTERM into a StopRequest for the time of the `with`."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python allows signal handlers in the main thread only
        return

    def ask(*_: object) -> None:
        request.asked = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
