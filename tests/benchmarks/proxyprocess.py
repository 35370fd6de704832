"""A FaultProxy in a separate process: in the benchmark's process it would share the GIL with what is measured."""

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from faultproxy import FaultProxy


class ProxyProcess:
    """Runs from construction to `stop`."""

    def __init__(self, upstream: str, **settings: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._calls, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, upstream, settings), daemon=True)
        self._process.start()
        self.endpoint: str = self._calls.recv()

    @property
    def requests(self) -> int:
        """The number of requests so far."""
        count: int = self._ask({})
        return count

    def fail(self, share: float) -> None:
        """From now on this share of the requests fails."""
        self._ask({"share": share})

    def stop(self) -> None:
        self._calls.send(None)
        self._process.join()

    def _ask(self, message: dict[str, Any]) -> Any:
        self._calls.send(message)
        return self._calls.recv()


def _serve(calls: Connection, upstream: str, settings: dict[str, Any]) -> None:
    proxy = FaultProxy(upstream, **settings)
    proxy.start()
    calls.send(proxy.endpoint)
    while (message := calls.recv()) is not None:
        if message:
            proxy.fail(**message)
        calls.send(sum(proxy.requests.values()))
    proxy.stop()
