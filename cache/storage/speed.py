"""Storage speed: how fast a disk or a bucket writes and reads objects of the size that a store has."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdcache.cache.storage.local import LocalObjects
from kdcache.cache.storage.objects import Objects
from kdcache.cache.storage.opening import open_probe

MAX_PROBE_BYTES = 8 * 2**20
_ROUNDS = 3  # the median of three ignores one outlier
_MAX_PIECES = 64  # read back from each object


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageSpeed:
    """The throughput of one writer and of one reader."""

    write_bytes_per_s: float  # whole objects; each is safely stored before the next begins
    read_bytes_per_s: float  # pieces of objects, one after the other
    object_bytes: int
    piece_bytes: int


def measure_storage(url: str, *, object_bytes: int, piece_bytes: int) -> StorageSpeed:
    """Write a few objects under `url`, read pieces of them back, and delete them.

    Args:
        object_bytes: size of a shard; at most MAX_PROBE_BYTES are written. Small objects pay for every round trip.
        piece_bytes: size of an entry's row, which is what a reader asks for.

    Raises:
        KDCacheError: writing or reading is impossible there.
    """
    object_bytes = max(1, min(object_bytes, MAX_PROBE_BYTES))
    piece_bytes = max(1, min(piece_bytes, object_bytes))
    starts = range(0, object_bytes - piece_bytes + 1, piece_bytes)[:_MAX_PIECES]
    data = os.urandom(object_bytes)  # a file system cannot compress or deduplicate it
    write_s, read_s = [], []
    with open_probe(url) as objects:
        for name in map(str, range(_ROUNDS)):
            write_s.append(_seconds(partial(objects.put_new, name, data)))
            _drop_from_memory(objects, name)
            # Backwards: reading ahead, as disks do, would flatter the result. A reader's entries are shuffled.
            read_s.append(_seconds(partial(_read, objects, name, starts[::-1], piece_bytes)))
    return StorageSpeed(
        write_bytes_per_s=object_bytes / statistics.median(write_s),
        read_bytes_per_s=len(starts) * piece_bytes / statistics.median(read_s),
        object_bytes=object_bytes,
        piece_bytes=piece_bytes,
    )


def _read(objects: Objects, name: str, starts: range, piece_bytes: int) -> None:
    for start in starts:
        objects.read_range(name, start, piece_bytes)


def _drop_from_memory(objects: Objects, name: str) -> None:
    """Make the next read of a new file come from the disk. Only Linux can; elsewhere it comes from memory."""
    if isinstance(objects, LocalObjects) and hasattr(os, "posix_fadvise"):
        handle = os.open(Path(objects.root, name), os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
