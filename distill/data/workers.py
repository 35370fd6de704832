"""Worker processes that make batches ahead of the steps, each in its own slots.

    parent: (positions, slot) -> worker: entries read, crops cut, stacked into the slot -> parent: where they lie

Batch k is made by worker k modulo their number, so batches come in order without a queue that sorts them. A worker
starts from the fork server with nothing open, on one thread, and ends with its parent.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch._utils import ExceptionWrapper

from kdcache.cache.errors import KDCacheError, TrainingError
from kdcache.distill.data.slots import Field, Placed, Slot

BATCHES_AHEAD = 2  # a worker: one that waits while the next is made
# One more than are under way for the batch of the current step, and one for the batch that is copied to the device meanwhile.
SLOTS = BATCHES_AHEAD + 2

Make = Callable[[Sequence[int]], Mapping[str, Field]]
"""From positions of the stream to the fields of a batch. Travels to the workers."""


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    slots: list[Slot]
    waiting: deque[Slot] = field(default_factory=deque)  # of batches that were asked for and not taken
    asked: int = 0

    def ask(self, positions: Sequence[int]) -> None:
        slot = self.slots[self.asked % len(self.slots)]
        with suppress(OSError):  # a dead worker is noticed when its batch is taken
            self.connection.send((self.asked % len(self.slots), positions))
        self.asked += 1
        self.waiting.append(slot)

    def take(self) -> dict[str, Tensor]:
        """The oldest batch that was asked for, in its slot's memory."""
        slot = self.waiting.popleft()
        multiprocessing.connection.wait([self.connection, self.process.sentinel])
        try:
            # Also where the process has ended: what it had sent before is still to be read.
            found: dict[str, Placed] | KDCacheError | ExceptionWrapper = self.connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(found, ExceptionWrapper):
            found.reraise()  # type: ignore[no-untyped-call]
        if isinstance(found, KDCacheError):
            raise found
        assert isinstance(found, dict)
        return slot.read(found)

    def _death(self) -> TrainingError:
        self.process.join(timeout=5)
        code = self.process.exitcode
        reason = "it was closed" if code is None else f"exit code {code}"
        if code is not None and code < 0:
            reason = signal.Signals(-code).name
        return TrainingError(
            f"a loader process died: {reason}",
            hint="the host may have run out of memory: use fewer --workers, or --workers 0, with --resume",
        )

    def close(self) -> None:
        self.connection.close()  # the worker's next receive ends it
        self.process.join(timeout=0.5)
        if self.process.is_alive():  # in the middle of a batch
            self.process.kill()
            self.process.join()
        self.process.close()
        for slot in self.slots:
            slot.close()


def batches_of_workers(
    make: Make, positions: Iterator[Sequence[int]], workers: int, *, pin: bool = False
) -> Generator[dict[str, Tensor], None, None]:
    """Batches by field, in the order of `positions`, without end; close the iterator to stop the workers.

    Args:
        workers: at least 1.
        pin: page-lock the slots for CUDA.

    Yields:
        Tensors in memory that is written again: they are valid until the second batch after them is taken.

    Raises:
        KDCacheError: as `make` raised it.
        TrainingError: a worker process died.
    """
    team = [_start(make, pin=pin) for _ in range(workers)]
    try:
        for _ in range(BATCHES_AHEAD):
            for worker in team:
                worker.ask(next(positions))
        while True:
            for worker in team:
                batch = worker.take()
                worker.ask(next(positions))
                yield batch
    finally:
        for worker in team:
            worker.close()


def _start(make: Make, *, pin: bool) -> _Worker:
    context = _context()
    ours, theirs = context.Pipe()
    slots = [Slot.create(pin=pin) for _ in range(SLOTS)]
    arguments = (make, theirs, _Descriptors([slot.descriptor for slot in slots]))
    process = context.Process(target=_work, args=arguments, daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()  # so that the worker's end is the only one, and its death closes it
    return _Worker(process, ours, slots)


class _Descriptors:
    """File descriptors that are duplicated into the process that they are sent to."""

    def __init__(self, descriptors: list[int]) -> None:
        self.descriptors = descriptors

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, ([DupFd(descriptor) for descriptor in self.descriptors],)


def _received(sent: list[Any]) -> _Descriptors:
    return _Descriptors([each.detach() for each in sent])


def _work(make: Make, connection: Connection, received: _Descriptors) -> None:
    """A worker's life: until its parent closes the connection, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)  # workers and the student's threads must not fight over cores
    _end_with_parent()
    slots = [Slot(descriptor) for descriptor in received.descriptors]
    while True:
        try:
            place, positions = connection.recv()
        except (EOFError, OSError):
            return
        try:
            found: Any = slots[place].write(make(positions))
        except KDCacheError as error:
            found = error
        except Exception:  # noqa: BLE001 - whatever it is, the parent raises it
            found = ExceptionWrapper(where="in a process that reads crops")  # type: ignore[no-untyped-call]
        with suppress(OSError):
            connection.send(found)


def _end_with_parent() -> None:
    # The parent process id would be the fork server's, which lives as long as workers do.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _context() -> BaseContext:
    # A fork of a process that runs threads (autograd's, a store's) can hang. The fork server runs none; it imports
    # torch once for all workers, where spawned ones would each take seconds for it.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kdcache.distill.data.loader"])
    return context
