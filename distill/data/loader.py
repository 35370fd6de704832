"""The loader: batches, read and cut by worker processes ahead of the steps that use them.

    positions of a step -> worker: entries read, crops cut, one batch in shared memory -> pinned memory -> the device

The order of the stream is a function of the seed (order.EntryOrder) and a batch is an interval of it, so one loader
serves a whole run, nothing has to be remembered between steps, and resuming needs only the number of the step.

A worker keeps one core busy and no more: torch gives its workers one thread each, blosc's own threads are off
(shards.py), and nothing else there has any. So workers and the student's threads do not fight over cores, as long as
there are no more of them than cores. A worker starts from the fork server with nothing open, and opens what it reads.
"""

import multiprocessing
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import count
from multiprocessing.context import BaseContext
from threading import Thread
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from kdcache.cache.errors import TrainingError
from kdcache.distill.data.ahead import Ahead
from kdcache.distill.data.targets import Batch, Failure, ViewDataset

BATCHES_AHEAD = 2  # a worker: one that waits while the next is made


@dataclass(frozen=True, kw_only=True, slots=True)
class InFlight:
    """The data that a process and its workers hold at most.

    Beside it a worker holds one decoded image and what it is resized in, or its batch's stored crops, and codes as packed.
    """

    entries: int  # ready, in the making, and of the batch that is learnt from
    entry_bytes: int  # a crop, its label and its codes
    bytes: int  # of all; those in the making stand twice, one by one and stacked

    @classmethod
    def of(cls, *, workers: int, batch_entries: int, entry_bytes: int) -> "InFlight":
        batches, in_the_making = max(1, workers * BATCHES_AHEAD) + 1, max(1, workers)
        return cls(
            entries=batches * batch_entries,
            entry_bytes=entry_bytes,
            bytes=(batches + in_the_making) * batch_entries * entry_bytes,
        )


class DeviceCopier:
    """Batches on their way to the device, on a stream of their own: the copy of one runs beside the step before it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device, as crops of uint8 and codes of integers: what is wider is made there."""
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in (*copied[:3], *copied.codes.values()):
            tensor.record_stream(current)  # its memory is the copying stream's, and is used in this one
        return copied


def read_batches(
    dataset: ViewDataset,
    *,
    batch_size: int,
    start_step: int,
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    ahead: Ahead | None = None,
) -> Generator[Batch, None, None]:
    """This process's batches from step `start_step` on, without end; close the iterator to stop the workers.

    Args:
        ahead: is told of every batch that a worker is given, and closed with the iterator.

    Raises:
        KDCacheError: as it was raised where the crop was cut.
        TrainingError: a worker process died.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=_RankBatches(batch_size, start_step, rank, processes, ahead),
        collate_fn=_collate,
        num_workers=workers,
        prefetch_factor=BATCHES_AHEAD if workers else None,
        multiprocessing_context=_worker_context() if workers else None,
        worker_init_fn=_end_with_parent,
        pin_memory=pin_memory,
    )
    with closing(ahead) if ahead is not None else nullcontext():
        batches = iter(loader)
        while True:
            yield _next_batch(batches, workers)


def _next_batch(batches: Iterator[Any], workers: int) -> Batch:
    try:
        batch = next(batches)
    except (RuntimeError, OSError, EOFError) as error:
        if not workers or not _means_a_death(error):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TrainingError(
            f"a process that reads crops died: {reason}",
            hint="most often memory or /dev/shm ran out: fewer --workers, or 0; then --resume",
        ) from None
    if isinstance(batch, Failure):
        raise batch.error
    return batch  # type: ignore[no-any-return] # torch's loader says nothing of what it gives


def _means_a_death(error: Exception) -> bool:
    """Whether a worker is gone: torch noticed it, or it was gone while a batch was taken over from it."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    return "in DataLoader worker process" not in str(error)  # so torch marks what a living worker raised


@dataclass(frozen=True, slots=True)
class _RankBatches:
    """Sampler: positions [s B + rank b, s B + (rank + 1) b) for steps s = start, start + 1, ..., with b = B / processes."""

    batch_size: int
    start_step: int
    rank: int
    processes: int
    ahead: Ahead | None

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.processes
        for step in count(self.start_step):
            if self.ahead is not None:
                self.ahead.advance(step)
            first = step * self.batch_size + self.rank * share
            yield list(range(first, first + share))


def _worker_context() -> BaseContext:
    # A fork of a process that runs threads (autograd's, a store's) can hang. The fork server runs none; it imports
    # torch once for all workers, where spawned ones would each take seconds for it.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _end_with_parent(worker: int) -> None:
    # torch's own watch looks at the parent process id: a worker's is the fork server, which lives while workers do.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _collate(items: Sequence[Batch | Failure]) -> Batch | Failure:
    """One batch. In a worker torch stacks straight into the shared memory that it travels in."""
    for item in items:
        if isinstance(item, Failure):
            return item
    batch: Batch = default_collate(list(items))
    return batch
