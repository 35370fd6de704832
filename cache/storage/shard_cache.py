"""The shard cache: whole objects of remote stores on this host's disk, shared by all its processes and runs.

    objects/3f/3f9a...    an object, named by the sha256 that the ledger records
    partial/3f9a...       an object that is being fetched, locked by the process that fetches it
    used                  bytes of all of them, changed under a lock on this file

The name is the content, so nothing here can be out of date, and an object of two stores is kept once. Size and sha256 are
compared when an object arrives; later only its size, because a reader checks every row by the row's own checksum. The
modification time of a file is the time of its last use; the least recently used objects are evicted first.

The kernel releases locks when their process ends, so a killed process blocks nobody: the next one that needs its object
overwrites the partial file, and eviction deletes partial files that nobody is fetching.
"""

import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kdcache.cache.errors import KDCacheError, StoreDamagedError
from kdcache.cache.storage.local import LocalObjects
from kdcache.cache.storage.objects import ByteRange, ObjectRecord, Objects, sha256

_DIGITS = 19  # of the number in `used`: enough for any 64-bit size
_SPARE_DIVISOR = 20  # eviction frees a 20th of the limit at once, so that it is not needed for every object
_MAX_DOWNLOADS = 2  # of an object that arrives with wrong bytes: the first may have been damaged on the way
_RECHECK_S = (
    10.0  # how long a file is assumed to be still there; a check costs two calls, reading a small row three
)
_MAX_REFETCHES = 5  # times in a row that an object is evicted by others between its fetch and its read

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class ShardCache:
    """The objects in `folder`. Processes with different limits may share it; each evicts by its own limit."""

    folder: Path
    limit_bytes: int

    def relative_path(self, digest: str) -> str:
        """Path of an object in `folder`. The file exists from its fetch until its eviction."""
        return f"objects/{digest[:2]}/{digest}"

    def fetch(self, objects: Objects, path: str, record: ObjectRecord, *, wait: bool = True) -> bool:
        """Make sure the object is here, and mark it as used now. False if another process is still fetching it.

        Args:
            wait: for the other process to finish; if False, return at once.

        Raises:
            StoreDamagedError: it is missing, or arrived twice with other bytes than `record` says.
            KDCacheError: fetching failed, or the disk is full.
        """
        with _disk_errors(self.folder):
            if self._use(record):
                return True
            partial = f"{self.folder}/partial/{record.sha256}"
            with _locked(partial, wait=wait) as descriptor:
                if descriptor is None:
                    return False
                if self._use(record):  # another process finished it while we waited for the lock
                    os.unlink(partial)
                    return True
                try:
                    self._reserve(descriptor, record.size)
                    # Not synced, because a sync for every object is slow. After a power failure the
                    # rows' checksums find a file of zeros, and it is fetched again.
                    _write(descriptor, _download(objects, path, record))
                    # Renamed while locked: a process that waits for this lock then finds the object in its place.
                    _with_folder(lambda target: os.replace(partial, target), self._target(record))
                    return True
                except (
                    BaseException
                ):  # also an interrupt: otherwise its bytes would count as used until an eviction
                    with suppress(FileNotFoundError):
                        os.unlink(partial)
                    self._release(record.size)
                    raise

    def discard(self, record: ObjectRecord) -> None:
        """Delete an object whose bytes turned out to be wrong."""
        with _disk_errors(self.folder):
            try:
                os.unlink(self._target(record))
            except FileNotFoundError:
                return  # another process deleted it and has subtracted its size
            self._release(record.size)

    @property
    def usable_bytes(self) -> int:
        """Bytes that one process can rely on to stay here together, as far as the limit allows."""
        return self.limit_bytes - self.limit_bytes // _SPARE_DIVISOR

    def limit_for(self, size: int) -> int:
        """The smallest limit with `size` usable bytes."""
        return -(-size * _SPARE_DIVISOR // (_SPARE_DIVISOR - 1))

    def disk_bytes(self) -> int:
        """Bytes of the disk that the cache could use: those that are free and those that it uses now."""
        nearest = next(folder for folder in (self.folder, *self.folder.parents) if folder.is_dir())
        return shutil.disk_usage(nearest).free + sum(size for _, size, _ in self._scan())

    def _use(self, record: ObjectRecord) -> bool:
        """Mark the object as used now. False if it is missing or has the wrong size; then it is deleted."""
        target = self._target(record)
        try:
            if os.stat(target).st_size == record.size:
                os.utime(target)  # not the access time: most systems mount disks with relatime or noatime
                return True
            os.unlink(target)
        except FileNotFoundError:
            pass
        return False

    def _target(self, record: ObjectRecord) -> str:
        return f"{self.folder}/{self.relative_path(record.sha256)}"

    def _reserve(self, descriptor: int, size: int) -> None:
        """Give an empty partial file its full size. Evicts the least recently used objects if limit or disk demand it."""
        with self._account() as account:
            used, free = account.read(), shutil.disk_usage(self.folder).free
            if used + size > self.limit_bytes or free < size:
                os.truncate(descriptor, 0)  # what a killed process left in it must not be counted twice
                spare = self.limit_bytes // _SPARE_DIVISOR
                used = self._evict(to_bytes=self.limit_bytes - spare - size, to_free=size - free)
                if used + size > self.limit_bytes or shutil.disk_usage(self.folder).free < size:
                    raise KDCacheError(
                        f"the cache {self.folder} has no space for {size} bytes",
                        hint=f"free some disk space, or raise --cache-limit (now {self.limit_bytes} bytes)",
                    )
            # From now on an eviction by another process counts these bytes too.
            os.truncate(descriptor, size)
            account.write(used + size)

    def _release(self, size: int) -> None:
        with self._account() as account:
            account.write(max(0, account.read() - size))

    def _evict(self, *, to_bytes: int, to_free: int) -> int:
        """Delete least recently used objects until at most `to_bytes` remain and `to_free` are freed; bytes that remain."""
        self._clear_leftovers()
        found = sorted(self._scan())
        left = sum(size for _, size, _ in found)
        to_bytes = min(to_bytes, left - to_free)
        for _, size, path in found:
            if left <= to_bytes:
                break
            if (
                path.parent.name != "partial"
            ):  # somebody is fetching it, or _clear_leftovers would have deleted it
                path.unlink(missing_ok=True)
                left -= size
        return left

    def _clear_leftovers(self) -> None:
        for name in _names(self.folder / "partial"):
            path = f"{self.folder}/partial/{name}"
            with _locked(path, wait=False, create=False) as descriptor:
                if descriptor is not None:  # nobody has it locked, so nobody is fetching it
                    os.unlink(path)

    def _scan(self) -> Iterator[tuple[int, int, Path]]:
        """(time of last use in ns, bytes, path) of every object and every partial file."""
        folders = [self.folder / "objects" / name for name in _names(self.folder / "objects")]
        for folder in (*folders, self.folder / "partial"):
            for name in _names(folder):
                try:
                    found = (folder / name).stat()
                except FileNotFoundError:
                    continue
                yield found.st_mtime_ns, found.st_size, folder / name

    @contextmanager
    def _account(self) -> Iterator["_Account"]:
        with _locked(f"{self.folder}/used") as descriptor:
            assert descriptor is not None
            yield _Account(self, descriptor)


@dataclass(frozen=True, slots=True)
class _Account:
    """The number of bytes in the cache. A killed process does not subtract its bytes; the next eviction counts anew."""

    cache: ShardCache
    descriptor: int

    def read(self) -> int:
        text = os.pread(self.descriptor, 2 * _DIGITS, 0)
        if text.isdigit():
            return int(text)
        os.truncate(self.descriptor, 0)  # empty at first, or damaged: count
        return sum(size for _, size, _ in self.cache._scan())

    def write(self, used: int) -> None:
        # Always the same length, so that the file is never truncated: ext4 flushes a truncated file on close, 3 ms.
        os.pwrite(self.descriptor, b"%0*d" % (_DIGITS, used), 0)


class CachedShards:
    """The shards of one store, read through the cache. A reader uses this in place of the store's objects."""

    def __init__(self, objects: Objects, cache: ShardCache) -> None:
        self.url = objects.url
        self.records: dict[str, ObjectRecord] = {}
        """What the ledger says about every shard that may be read, by path."""
        self._objects = objects
        self._cache = cache
        self._files = LocalObjects(cache.folder)
        self._seen_s: dict[str, float] = {}  # by path: when it was last found here

    def get(self, path: str) -> bytes:
        """The whole shard."""
        return self.read_ranges([ByteRange(path, 0, self.records[path].size)])[0]

    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """As Objects.read_ranges; shards that are not here are fetched first. Raises as ShardCache.fetch."""
        paths = {each.path: self._cache.relative_path(self.records[each.path].sha256) for each in ranges}
        local = [ByteRange(paths[path], start, length) for path, start, length in ranges]
        for _ in range(_MAX_REFETCHES):
            for path in paths:
                self.fetch(path)
            try:
                return self._files.read_ranges(local)
            except FileNotFoundError:  # another process evicted it since `fetch` looked
                self._seen_s.clear()
        raise KDCacheError(
            f"the cache {self._cache.folder} is too small for all its users: objects are evicted before they are read",
            hint="raise --cache-limit, or give some of the users another KDCACHE_CACHE folder",
        )

    def fetch(self, path: str, *, wait: bool = True) -> None:
        """Make sure a shard is in the cache, see ShardCache.fetch. One that was found a moment ago is not looked for."""
        now = time.monotonic()
        if now - self._seen_s.get(path, -_RECHECK_S) < _RECHECK_S:
            return
        if self._cache.fetch(self._objects, path, self.records[path], wait=wait):
            self._seen_s[path] = now

    def discard(self, paths: Iterable[str]) -> None:
        """Delete these shards here, so that the next read fetches them again."""
        for path in paths:
            self._cache.discard(self.records[path])
        self._seen_s.clear()
        self._files = LocalObjects(self._cache.folder)  # the old one has the deleted files still open


def default_folder() -> Path:
    """$KDCACHE_CACHE/shards, or ~/.cache/kdcache/shards if the variable is not set."""
    chosen = os.environ.get("KDCACHE_CACHE")
    return (Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "kdcache") / "shards"


def _download(objects: Objects, path: str, record: ObjectRecord) -> bytes:
    """The object's bytes, compared with the ledger. Downloaded twice if they differ, in case of damage on the way."""
    for _ in range(_MAX_DOWNLOADS):
        try:
            # A range, because fsspec asks for the size before it reads a whole object: one request more. One byte more
            # than recorded shows an object that is too long.
            data = objects.read_range(path, 0, record.size + 1)
        except FileNotFoundError:
            raise StoreDamagedError(
                f"{objects.url}/{path} is missing",
                hint=f"`kdcache verify {objects.url} --repair` computes it again; or restore it from a copy",
            ) from None
        if len(data) == record.size and sha256(data) == record.sha256:
            return data
        logger.warning("%s/%s arrived with other bytes than the ledger records", objects.url, path)
    raise StoreDamagedError(
        f"{objects.url}/{path} is not what the ledger records: {len(data)} bytes with sha256 {sha256(data)[:12]}, "
        f"not {record.size} with {record.sha256[:12]}",
        hint=f"`kdcache verify {objects.url}` lists all damage, and with --repair repairs it; then run this command again",
    )


@contextmanager
def _locked(path: str, *, wait: bool = True, create: bool = True) -> Iterator[int | None]:
    """A descriptor of the file for reading and writing, exclusively locked.

    None if another process has the lock (without `wait`), or if the file does not exist (without `create`). Not a file
    object: eight threads fetch at once, and each of its many calls would release and retake Python's lock.
    """
    while True:
        try:
            if create:
                descriptor = _with_folder(lambda made: os.open(made, os.O_RDWR | os.O_CREAT, 0o666), path)
            else:
                descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            if create:
                raise
            yield None
            return
        try:
            if not _lock(descriptor, wait=wait):
                yield None
                return
            # The owner before us may have renamed or deleted the file. Then our lock is on a file without a name: retry.
            if _is_at(path, descriptor):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """True if the lock is ours now; False, without `wait`, if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # Linux writes at most 2 GiB at once
        rest = rest[os.write(descriptor, rest) :]


def _with_folder(work: Callable[[str], _Result], path: str) -> _Result:
    """What `work` returns for a path. If it fails because the folder is missing, the folder is made first."""
    try:
        return work(path)
    except FileNotFoundError:
        pass  # try first: the folder is missing only once, and looking for it would cost a call each time
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return work(path)


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise KDCacheError(
            f"cannot write into the cache {folder}: {error.strerror}",
            hint="free some disk space" if full else "set KDCACHE_CACHE to another folder",
        ) from None
