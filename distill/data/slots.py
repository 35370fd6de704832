"""Slots: memory that a worker and the training process share, written again and again.

A batch of 8 crops of 512x1024 with logits and features is 36 MB. Written into fresh shared memory it costs 31 ms of a
worker's time, nearly all of it for the kernel to hand out and clear pages; written into pages that are there, 4.5 ms.

The memory is an anonymous file (memfd), not a file in /dev/shm: containers often limit that to 64 MB.
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes: fields start at a cache line
_GROWTH = 1.25  # of a slot that is too small: batches of boxes differ in size


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a tensor lies in a slot."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # in bytes


@dataclass(frozen=True, slots=True)
class Block:
    """A field that is written straight into the slot, where a tensor of its own would cost a copy and fresh pages."""

    size: int  # bytes
    write: Callable[[Tensor], None]  # called with (size,) uint8


Field = Sequence[Tensor] | Block
"""The tensors of a field, one an entry, which are stacked; or a block."""


@dataclass(slots=True)
class Slot:
    """One block of shared memory. Both sides map it when they need it; the writer makes it larger, never smaller."""

    descriptor: int
    is_pinned: bool = False  # this side's mapping is page-locked for CUDA, so that copies from it do not wait
    _mapping: mmap.mmap | None = field(default=None, repr=False)
    _memory: Tensor | None = field(default=None, repr=False)  # (bytes,) uint8

    @classmethod
    def create(cls, *, pin: bool = False) -> "Slot":
        """An empty slot. On systems without memfd it is a temporary file that has no name."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("kdcache-batch"), pin)
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()), pin)

    def write(self, fields: Mapping[str, Field]) -> dict[str, Placed]:
        """Write each field, stacked tensors of one shape and type or a block, into the slot; where they lie."""
        placed, size = {}, 0
        for name, each in fields.items():
            size += -size % _ALIGNMENT
            placed[name] = _place(each, size)
            size = _end(placed[name])
        self._require(size)
        for name, each in fields.items():
            _fill(each, self._view(placed[name]))
        return placed

    def read(self, placed: Mapping[str, Placed]) -> dict[str, Tensor]:
        """Tensors that share the slot's memory: they change when it is written again."""
        self._require(max((_end(each) for each in placed.values()), default=0))
        return {name: self._view(each) for name, each in placed.items()}

    def close(self) -> None:
        """Give the memory back, as soon as no tensor of `read` is left."""
        self._unmap()
        os.close(self.descriptor)

    def _require(self, size: int) -> None:
        """Map the slot with at least `size` bytes."""
        if self._memory is not None and len(self._memory) >= size:
            return
        if (length := os.fstat(self.descriptor).st_size) < size:
            length = -(-int(size * _GROWTH) // mmap.PAGESIZE) * mmap.PAGESIZE
            os.ftruncate(self.descriptor, length)
        self._unmap()
        if length == 0:
            return
        self._mapping = mmap.mmap(self.descriptor, length)
        self._memory = torch.frombuffer(self._mapping, dtype=torch.uint8)
        if self.is_pinned:
            _cuda_host("Register", self._memory.data_ptr(), length, 0)

    def _unmap(self) -> None:
        if self._memory is not None and self.is_pinned:
            torch.cuda.synchronize()  # a copy from it may be under way; slots grow in the first batches alone
            _cuda_host("Unregister", self._memory.data_ptr())
        # Not closed: tensors may still refer to it. The last of them takes it along.
        self._mapping = self._memory = None

    def _view(self, placed: Placed) -> Tensor:
        if self._memory is None:
            return torch.empty(placed.shape, dtype=placed.dtype)
        return self._memory[placed.offset : _end(placed)].view(placed.dtype).view(placed.shape)


def gather(fields: Mapping[str, Field]) -> dict[str, Tensor]:
    """The same tensors as by way of a slot, in memory of their own."""
    gathered = {}
    for name, each in fields.items():
        placed = _place(each, 0)
        gathered[name] = torch.empty(placed.shape, dtype=placed.dtype)
        _fill(each, gathered[name])
    return gathered


def _place(each: Field, offset: int) -> Placed:
    if isinstance(each, Block):
        return Placed(torch.uint8, (each.size,), offset)
    return Placed(each[0].dtype, (len(each), *each[0].shape), offset)


def _fill(each: Field, into: Tensor) -> None:
    if isinstance(each, Block):
        each.write(into)
    else:
        torch.stack(list(each), out=into)


def _end(placed: Placed) -> int:
    return placed.offset + torch.Size(placed.shape).numel() * placed.dtype.itemsize


def _cuda_host(what: str, *arguments: int) -> None:
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = int(getattr(runtime, f"cudaHost{what}")(*arguments))
    if status != 0:
        raise RuntimeError(f"cudaHost{what} of the memory of a batch failed with CUDA error {status}")
