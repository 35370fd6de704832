"""The loader: worker processes read entries and cut crops ahead of the steps that use them.

    positions of a step -> worker: entries read, crops cut, one batch in shared memory -> the device

The order of the stream is a function of the seed (order.EntryOrder) and a batch is an interval of it, so one loader
serves a whole run, nothing has to be remembered between steps, and resuming needs only the number of the step.
"""

from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import count

import torch

from kdcache.cache.errors import TrainingError
from kdcache.cache.views.policy import ViewPolicy
from kdcache.distill.data.prefetch import ShardPrefetcher
from kdcache.distill.data.slots import gather
from kdcache.distill.data.targets import Batch, ViewDataset
from kdcache.distill.data.workers import BATCHES_AHEAD, SLOTS, batches_of_workers


@dataclass(frozen=True, kw_only=True, slots=True)
class InFlight:
    """The most data that a process and its workers have in memory.

    Not counted: what a worker needs to make an entry, which is one decoded image with its resized copy, or the stored
    crops of its batch, and the packed codes.
    """

    entries: int  # of the batches that are ready, being made, and being learnt from
    entry_bytes: int  # a crop, its label and its codes
    bytes: int  # of the slots, and of the entries that workers are about to stack

    @classmethod
    def of(cls, *, workers: int, batch_entries: int, entry_bytes: int) -> "InFlight":
        """The bound for a number of workers and of entries in a process's batch."""
        batches, in_the_making = max(1, workers * BATCHES_AHEAD) + 1, max(1, workers)
        slots = workers * SLOTS if workers else batches
        return cls(
            entries=batches * batch_entries,
            entry_bytes=entry_bytes,
            bytes=(slots + in_the_making) * batch_entries * entry_bytes,
        )


class DeviceCopier:
    """Copies batches to the device on a separate CUDA stream, so that a copy overlaps the step before it.

    Crops of batches that arrive as boxes are made on the device. Those of the first batch are compared with what this
    host's processor makes of the same boxes.

    Args:
        policy: of the views; needed for boxes.
    """

    def __init__(self, device: torch.device, policy: ViewPolicy | None = None) -> None:
        self._device = device
        self._policy = policy
        self._is_compared = False
        self._stream: torch.cuda.Stream | None = None
        self._copied: torch.cuda.Event | None = None  # the last batch has left the host's memory
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device, still as uint8 crops and integer codes: floats are four times as large.

        Raises:
            TrainingError: the device makes other crops of the first batch than this host's processor.
        """
        copied = batch.to(self._device) if self._stream is None else self._copy(batch, self._stream)
        if copied.boxes is None:
            return copied
        assert self._policy is not None
        replayed = copied.replayed(self._policy)
        if not self._is_compared:
            _require_same_crops(replayed, batch.replayed(self._policy))
            self._is_compared = True
        return replayed

    def _copy(self, batch: Batch, stream: torch.cuda.Stream) -> Batch:
        with torch.cuda.stream(stream):
            copied = batch.to(self._device)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        # The batch before this one was copied a step ago, so this does not wait; after it workers may write its memory
        # again.
        if self._copied is not None:
            self._copied.synchronize()
        self._copied = event
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(stream)
        for tensor in copied.fields().values():
            # Allocated on the copying stream: without this, the allocator may reuse the memory while `current` reads it.
            tensor.record_stream(current)
        return copied


def _require_same_crops(found: Batch, wanted: Batch) -> None:
    for name in ("image", "label"):
        if not torch.equal(getattr(found, name).cpu(), getattr(wanted, name)):
            raise TrainingError(
                f"{found.image.device} makes another {name} of the first batch's boxes than this host's processor",
                hint="the device or its driver computes wrongly; `--device cpu` trains without it",
            )


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

    Workers write a batch's memory again when the second batch after it is taken: use it, copy it to the device or clone
    it before.

    Args:
        pin_memory: page-lock the memory that batches arrive in, so that copies to CUDA do not wait.
        prefetcher: notified of every batch that is handed to a worker, and closed with the iterator.

    Raises:
        KDCacheError: the error that a worker met while it read an entry or cut a crop.
        TrainingError: a worker process died.
    """
    positions = _positions(batch_size, start_step, rank, processes, prefetcher)
    make = dataset.batch_fields
    with closing(prefetcher) if prefetcher is not None else nullcontext():
        if workers == 0:
            for places in positions:
                yield Batch.of_fields(gather(make(places)))
        with closing(batches_of_workers(make, positions, workers, pin=pin_memory)) as batches:
            for fields in batches:
                yield Batch.of_fields(fields)


def _positions(
    batch_size: int, start_step: int, rank: int, processes: int, prefetcher: ShardPrefetcher | None
) -> Iterator[list[int]]:
    """Positions [s B + rank b, s B + (rank + 1) b) for steps s = start, start + 1, ..., with b = B / processes."""
    share = batch_size // processes
    for step in count(start_step):
        if prefetcher is not None:
            prefetcher.advance(step)
        first = step * batch_size + rank * share
        yield list(range(first, first + share))
