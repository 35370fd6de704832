"""The loader: worker processes read entries and cut crops ahead of the steps that use them.

    positions of a step -> worker: read entries, cut crops, stack the batch in shared memory -> pinned memory -> device

The order of the stream is a function of the seed (order.EntryOrder) and a batch is an interval of it. So one loader
serves a whole run and keeps no state between steps; resuming needs only the number of the step.

A worker uses one core: torch gives it one thread, and blosc's own threads are switched off (cache/store/shards.py). So
workers do not compete with the student's threads, as long as the machine has a core for each.
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
from kdcache.distill.data.prefetch import ShardPrefetcher
from kdcache.distill.data.targets import Batch, Failure, ViewDataset

BATCHES_AHEAD = 2  # of each worker: one is ready while it makes the next


@dataclass(frozen=True, kw_only=True, slots=True)
class InFlight:
    """The most data that a process and its workers have in memory.

    Not counted: what a worker needs to make an entry, which is one decoded image with its resized copy, or the stored
    crops of its batch, and the packed codes.
    """

    entries: int  # of the batches that are ready, being made, and being learnt from
    entry_bytes: int  # a crop, its label and its codes
    bytes: int  # of all entries; those of a batch that is being made count twice, one by one and stacked

    @classmethod
    def of(cls, *, workers: int, batch_entries: int, entry_bytes: int) -> "InFlight":
        """The bound for a number of workers and of entries in a process's batch."""
        batches, in_the_making = max(1, workers * BATCHES_AHEAD) + 1, max(1, workers)
        return cls(
            entries=batches * batch_entries,
            entry_bytes=entry_bytes,
            bytes=(batches + in_the_making) * batch_entries * entry_bytes,
        )


class DeviceCopier:
    """Copies batches to the device on a separate CUDA stream, so that a copy overlaps the step before it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device, still as uint8 crops and integer codes: floats are four times as large."""
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in (*copied[:3], *copied.codes.values()):
            # Allocated on the copying stream: without this, the allocator may reuse the memory while `current` reads it.
            tensor.record_stream(current)
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
    prefetcher: ShardPrefetcher | None = None,
) -> Generator[Batch, None, None]:
    """This process's batches from step `start_step` on, without end. Close the iterator to stop the workers.

    Args:
        prefetcher: notified of every batch that is handed to a worker, and closed with the iterator.

    Raises:
        KDCacheError: the error that a worker met while it read an entry or cut a crop.
        TrainingError: a worker process died.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=_RankBatches(batch_size, start_step, rank, processes, prefetcher),
        collate_fn=_collate,
        num_workers=workers,
        prefetch_factor=BATCHES_AHEAD if workers else None,
        multiprocessing_context=_worker_context() if workers else None,
        worker_init_fn=_end_with_parent,
        pin_memory=pin_memory,
    )
    with closing(prefetcher) if prefetcher is not None else nullcontext():
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
            f"a loader process died: {reason}",
            hint="memory or /dev/shm may have run out: use fewer --workers, or --workers 0, with --resume",
        ) from None
    if isinstance(batch, Failure):
        raise batch.error
    return batch  # type: ignore[no-any-return] # torch's DataLoader is not typed


def _means_a_death(error: Exception) -> bool:
    """True if a worker died: torch noticed, or the connection broke while it handed over a batch."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    # torch marks errors that a living worker raised with these words.
    return "in DataLoader worker process" not in str(error)


@dataclass(frozen=True, slots=True)
class _RankBatches:
    """Sampler: positions [s B + rank b, s B + (rank + 1) b) for steps s = start, start + 1, ..., with b = B / processes."""

    batch_size: int
    start_step: int
    rank: int
    processes: int
    prefetcher: ShardPrefetcher | None

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.processes
        for step in count(self.start_step):
            if self.prefetcher is not None:
                self.prefetcher.advance(step)
            first = step * self.batch_size + self.rank * share
            yield list(range(first, first + share))


def _worker_context() -> BaseContext:
    # A fork of a process with threads (autograd's, a store's) can deadlock. The fork server has none, and imports torch
    # once for all workers, where spawned workers would each take seconds to import it.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _end_with_parent(worker: int) -> None:
    # torch's workers watch their parent's process id to notice its death. Here the parent is the fork server, which
    # lives as long as its workers, so a killed training process would leave them behind.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _collate(items: Sequence[Batch | Failure]) -> Batch | Failure:
    """Stack entries to a batch, or pass on a failure. In a worker, torch stacks into shared memory directly."""
    for item in items:
        if isinstance(item, Failure):
            return item
    batch: Batch = default_collate(list(items))
    return batch
