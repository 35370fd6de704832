"""The loader: batches, read and cut by worker processes ahead of the steps that use them.

    positions of a step -> worker: entries read, crops cut, one batch in shared memory -> the device

The order of the stream is a function of the seed (order.EntryOrder) and a batch is an interval of it, so one loader
serves a whole run, nothing has to be remembered between steps, and resuming needs only the number of the step.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from kdcache.distill.data.ahead import Ahead
from kdcache.distill.data.targets import Batch, ViewDataset
from kdcache.distill.data.workers import BATCHES_AHEAD, SLOTS, batches_of_workers


@dataclass(frozen=True, kw_only=True, slots=True)
class InFlight:
    """The data that a process and its workers hold at most.

    Beside it a worker holds one decoded image and what it is resized in, or its batch's stored crops, and codes as packed.
    """

    entries: int  # ready, in the making, and of the batch that is learnt from
    entry_bytes: int  # a crop, its label and its codes
    bytes: int  # of the slots, and of the entries that workers are about to stack

    @classmethod
    def of(cls, *, workers: int, batch_entries: int, entry_bytes: int) -> "InFlight":
        batches, in_the_making = max(1, workers * BATCHES_AHEAD) + 1, max(1, workers)
        slots = workers * SLOTS if workers else batches
        return cls(
            entries=batches * batch_entries,
            entry_bytes=entry_bytes,
            bytes=(slots + in_the_making) * batch_entries * entry_bytes,
        )


class DeviceCopier:
    """Batches on their way to the device, on a stream of their own: the copy of one runs beside the step before it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._copied: torch.cuda.Event | None = None  # the last batch has left the host's memory
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device, as crops of uint8 and codes of integers: what is wider is made there."""
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        # The batch before this one was copied a step ago, so this does not wait; after it workers may write its memory again.
        if self._copied is not None:
            self._copied.synchronize()
        self._copied = event
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

    Workers write a batch's memory again when the second batch after it is taken: use it, copy it to the device or clone
    it before.

    Args:
        pin_memory: page-lock the memory that batches arrive in, so that copies to CUDA do not wait.
        ahead: is told of every batch that a worker is given, and closed with the iterator.

    Raises:
        KDCacheError: as it was raised where the crop was cut.
        TrainingError: a worker process died.
    """
    positions = _positions(batch_size, start_step, rank, processes, ahead)
    make = BatchMaker(dataset)
    with closing(ahead) if ahead is not None else nullcontext():
        if workers == 0:
            for places in positions:
                stacks = make(places)
                yield Batch.of_fields({name: torch.stack(tensors) for name, tensors in stacks.items()})
        with closing(batches_of_workers(make, positions, workers, pin=pin_memory)) as batches:
            for fields in batches:
                yield Batch.of_fields(fields)


@dataclass(frozen=True, slots=True)
class BatchMaker:
    """From positions of the stream to the entries of a batch by field. Raises KDCacheError as the dataset does."""

    dataset: ViewDataset

    def __call__(self, positions: Sequence[int]) -> dict[str, list[Tensor]]:
        stacks: dict[str, list[Tensor]] = {}
        for entry in self.dataset.entries(positions):
            for name, tensor in entry.fields().items():
                stacks.setdefault(name, []).append(tensor)
        return stacks


def _positions(
    batch_size: int, start_step: int, rank: int, processes: int, ahead: Ahead | None
) -> Iterator[list[int]]:
    """Positions [s B + rank b, s B + (rank + 1) b) for steps s = start, start + 1, ..., with b = B / processes."""
    share = batch_size // processes
    for step in count(start_step):
        if ahead is not None:
            ahead.advance(step)
        first = step * batch_size + rank * share
        yield list(range(first, first + share))
