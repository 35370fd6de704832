"""The shard cache: whole objects of remote stores on this host's disk, shared by all its processes and runs.

    objects/3f/3f9a...    an object; its name is the sha256 that the ledger states
    partial/3f9a...       one that is being fetched, locked by whoever fetches it
    used                  bytes of all of them, changed under a lock on this file

The name is the content, so nothing here can be stale, and two stores with an object in common keep it once. Size and
sha256 are compared when an object comes in; later its size alone, since a reader checks every row that it takes by the
row's own checksum. The file's time of modification is that of its last use, by which objects are evicted.

Locks are the kernel's and end with their process, so a killed one is in nobody's way: the next that wants its object
fetches it over what was left, and evicting clears away leftovers that nobody wants.
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

_DIGITS = 19  # of the account
_SPARE = 20  # evicting leaves a 20th of the limit free, so that it is not done for every object
_DOWNLOADS = 2  # of an object whose bytes are wrong
_LOOK_S = (
    10.0  # between looks at a file, which mark it as used: two calls, where reading a small row takes three
)
_EVICTED_MEANWHILE = 5  # times in a row that an object is fetched and gone again before it was read

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class ShardCache:
    """The objects in `folder`. Processes with different limits share it; each evicts by its own."""

    folder: Path
    limit_bytes: int

    def place(self, digest: str) -> str:
        """Where an object stands under the folder, once it was fetched and until it is evicted."""
        return f"objects/{digest[:2]}/{digest}"

    def fetch(self, objects: Objects, path: str, record: ObjectRecord, *, wait: bool = True) -> bool:
        """Have the object here, and marked as used now; False where another process is still fetching it.

        Args:
            wait: for another process that is fetching it; without, it is left to that one.

        Raises:
            StoreDamagedError: it is missing, or twice was not what `record` says.
            KDCacheError: it cannot be fetched, or the disk is full.
        """
        with _disk_errors(self.folder):
            if self._use(record):
                return True
            partial = f"{self.folder}/partial/{record.sha256}"
            with _locked(partial, wait=wait) as descriptor:
                if descriptor is None:
                    return False
                if self._use(record):  # it came while this one waited
                    os.unlink(partial)
                    return True
                try:
                    self._reserve(descriptor, record.size)
                    _write(descriptor, _download(objects, path, record))
                    _in_folder(lambda target: os.replace(partial, target), self._target(record))
                    return True
                except BaseException:
                    with suppress(FileNotFoundError):
                        os.unlink(partial)
                    self._release(record.size)
                    raise

    def discard(self, record: ObjectRecord) -> None:
        """Forget an object: what stands here turned out to be wrong."""
        with _disk_errors(self.folder):
            try:
                os.unlink(self._target(record))
            except FileNotFoundError:
                return  # another did, and gave the room back
            self._release(record.size)

    @property
    def usable_bytes(self) -> int:
        """What one process can count on holding at once, as far as the limit goes."""
        return self.limit_bytes - self.limit_bytes // _SPARE

    def limit_for(self, size: int) -> int:
        """The least limit with so many usable bytes."""
        return -(-size * _SPARE // (_SPARE - 1))

    def disk_bytes(self) -> int:
        """What the disk has for the cache: free, or the cache's already."""
        nearest = next(folder for folder in (self.folder, *self.folder.parents) if folder.is_dir())
        return shutil.disk_usage(nearest).free + sum(size for _, size, _ in self._scan())

    def _use(self, record: ObjectRecord) -> bool:
        """Mark the object as used now; False where it is not here, or not whole."""
        target = self._target(record)
        try:
            if os.stat(target).st_size == record.size:
                os.utime(target)
                return True
            os.unlink(target)
        except FileNotFoundError:
            pass
        return False

    def _target(self, record: ObjectRecord) -> str:
        return f"{self.folder}/{self.place(record.sha256)}"

    def _reserve(self, descriptor: int, size: int) -> None:
        """Give an empty partial file its size, within limit and disk, for which the least recently used objects go."""
        with self._account() as account:
            used, room = account.read(), shutil.disk_usage(self.folder).free
            if used + size > self.limit_bytes or room < size:
                os.truncate(descriptor, 0)
                spare = self.limit_bytes // _SPARE
                used = self._evict(to_bytes=self.limit_bytes - spare - size, to_free=size - room)
                if used + size > self.limit_bytes or shutil.disk_usage(self.folder).free < size:
                    raise KDCacheError(
                        f"no room for {size} bytes in the cache {self.folder}",
                        hint=f"free some space, or a larger --cache-limit (now {self.limit_bytes} bytes)",
                    )
            # Evicting counts it from now on. A file of that size may hold zeros after a power failure, as one that was
            # renamed and never synced: its rows' checksums tell, and it is fetched again.
            os.truncate(descriptor, size)
            account.write(used + size)

    def _release(self, size: int) -> None:
        with self._account() as account:
            account.write(max(0, account.read() - size))

    def _evict(self, *, to_bytes: int, to_free: int) -> int:
        """Delete the least recently used until at most `to_bytes` are left and `to_free` are freed; what is left."""
        self._clear_leftovers()
        found = sorted(self._scan())
        left = sum(size for _, size, _ in found)
        to_bytes = min(to_bytes, left - to_free)
        for _, size, path in found:
            if left <= to_bytes:
                break
            if path.parent.name != "partial":
                path.unlink(missing_ok=True)
                left -= size
        return left

    def _clear_leftovers(self) -> None:
        for name in _names(self.folder / "partial"):
            path = f"{self.folder}/partial/{name}"
            with _locked(path, wait=False, create=False) as descriptor:
                if descriptor is not None:  # nobody fetches it
                    os.unlink(path)

    def _scan(self) -> Iterator[tuple[int, int, Path]]:
        """(time of last use in ns, bytes, path) of every object, and of those on their way."""
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
    """Bytes in the cache, as far as its processes told. Whoever was killed did not; evicting counts anew."""

    cache: ShardCache
    descriptor: int

    def read(self) -> int:
        text = os.pread(self.descriptor, 2 * _DIGITS, 0)
        if text.isdigit():
            return int(text)
        os.truncate(self.descriptor, 0)
        return sum(size for _, size, _ in self.cache._scan())

    def write(self, used: int) -> None:
        # Of one length, so that nothing is cut off: for a file that was, ext4 writes to the disk when it is closed, 3 ms.
        os.pwrite(self.descriptor, b"%0*d" % (_DIGITS, used), 0)


class CachedShards:
    """The shards of one store by way of the cache: what a reader reads from in place of the store's objects."""

    def __init__(self, objects: Objects, cache: ShardCache) -> None:
        self.url = objects.url
        self.records: dict[str, ObjectRecord] = {}
        """By path: what the ledger says of every shard that may be asked for."""
        self._objects = objects
        self._cache = cache
        self._files = LocalObjects(cache.folder)
        self._looked: dict[str, float] = {}  # by path: when it was last seen to be there

    def get(self, path: str) -> bytes:
        """The whole shard."""
        return self.read_ranges([ByteRange(path, 0, self.records[path].size)])[0]

    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """As Objects.read_ranges; what is not here yet is fetched. Raises as ShardCache.fetch."""
        places = {each.path: self._cache.place(self.records[each.path].sha256) for each in ranges}
        local = [ByteRange(places[path], start, length) for path, start, length in ranges]
        for _ in range(_EVICTED_MEANWHILE):
            for path in places:
                self.fetch(path)
            try:
                return self._files.read_ranges(local)
            except FileNotFoundError:
                self._looked.clear()
        raise KDCacheError(
            f"the cache {self._cache.folder} is too small for all who use it: what is fetched is evicted at once",
            hint="a larger --cache-limit, or another KDCACHE_CACHE for some of them",
        )

    def fetch(self, path: str, *, wait: bool = True) -> None:
        """Have a shard in the cache, see ShardCache.fetch; one that was there a moment ago is taken to be still."""
        now = time.monotonic()
        if now - self._looked.get(path, -_LOOK_S) < _LOOK_S:
            return
        if self._cache.fetch(self._objects, path, self.records[path], wait=wait):
            self._looked[path] = now

    def discard(self, paths: Iterable[str]) -> None:
        """Fetch these again when they are asked for next."""
        for path in paths:
            self._cache.discard(self.records[path])
        self._looked.clear()
        self._files = LocalObjects(self._cache.folder)  # the one before holds the files open


def default_folder() -> Path:
    """$KDCACHE_CACHE/shards, else ~/.cache/kdcache/shards."""
    chosen = os.environ.get("KDCACHE_CACHE")
    return (Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "kdcache") / "shards"


def _download(objects: Objects, path: str, record: ObjectRecord) -> bytes:
    """The object's bytes, compared with the ledger; once more where they differ, for what went wrong on the way."""
    for _ in range(_DOWNLOADS):
        try:
            # A range, since whole objects are asked for their size first; one byte more, to see that they end there.
            data = objects.read_range(path, 0, record.size + 1)
        except FileNotFoundError:
            raise StoreDamagedError(
                f"{objects.url}/{path} is missing", hint="the ledger lists it: restore it from a copy"
            ) from None
        if len(data) == record.size and sha256(data) == record.sha256:
            return data
        logger.warning("%s/%s came with other bytes than the ledger states", objects.url, path)
    raise StoreDamagedError(
        f"{objects.url}/{path} is not what the ledger states: {len(data)} bytes with sha256 {sha256(data)[:12]}, "
        f"not {record.size} with {record.sha256[:12]}",
        hint="`kdcache verify` lists all that is damaged; restore the object from a copy and this run can go on",
    )


@contextmanager
def _locked(path: str, *, wait: bool = True, create: bool = True) -> Iterator[int | None]:
    """The file, open for reading and writing under a lock of its own; None where another has it, or it is not there.

    A descriptor, not a file object: eight threads fetch at once, and each call into the system hands Python's lock over.
    """
    while True:
        try:
            if create:
                descriptor = _in_folder(lambda made: os.open(made, os.O_RDWR | os.O_CREAT, 0o666), path)
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
            if _is_at(path, descriptor):  # else who had it before renamed or removed it
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether the lock is had now; without waiting another may have it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # Linux writes 2 GiB at once
        rest = rest[os.write(descriptor, rest) :]


def _in_folder(work: Callable[[str], _Result], path: str) -> _Result:
    """What `work` gives for a path, whose folder is made where that is what it lacks."""
    try:
        return work(path)
    except FileNotFoundError:
        pass
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
            hint="free some space" if full else "point KDCACHE_CACHE to another folder",
        ) from None
