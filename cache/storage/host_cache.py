"""The host cache: what one process fetched or decoded, kept on this host's disk for all its processes and runs.

    objects/3f/3f9a...    an object, named by a key of 64 hex digits
    partial/3f9a...       an object that is being made, locked by the process that makes it
    pins/host-12-0        keys that a running process still needs, locked by that process
    used                  bytes of all objects, changed under a lock on this file

A key says all that determines an object's bytes, so nothing here can be out of date. The modification time of a file is
the time of its last use; the least recently used objects are evicted first.

The kernel releases locks when their process ends, so a killed process blocks nobody: the next one that needs its object
overwrites the partial file, and eviction deletes partial files that nobody makes and pins that nobody holds.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kdcache.cache.errors import KDCacheError
from kdcache.cache.storage.writers import writer_name

_DIGITS = 19  # of the number in `used`: enough for any 64-bit size
_SPARE_DIVISOR = 20  # eviction frees a 20th of the limit at once, so that it is not needed for every object
_KEY_DIGITS = 64

DEFAULT_LIMIT_BYTES = 50 * 10**9

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class HostCache:
    """The objects in `folder`. Processes with different limits may share it; each evicts by its own limit."""

    folder: Path
    limit_bytes: int

    def relative_path(self, key: str) -> str:
        """Path of an object in `folder`. The file exists from `add` until its eviction."""
        return f"objects/{key[:2]}/{key}"

    def path(self, key: str) -> str:
        """Path of an object."""
        return f"{self.folder}/{self.relative_path(key)}"

    def add(self, key: str, size: int, write: Callable[[int], None], *, wait: bool = True) -> bool:
        """Make sure an object of `size` bytes is here, and mark it as used now. False if another process is making it.

        Args:
            write: writes the object to a file descriptor; called only if the object is not here.
            wait: for the other process to finish; if False, return at once.

        Raises:
            KDCacheError: the object does not fit the limit or the disk.
        """
        with disk_errors(self.folder):
            if self.use(key, size):
                return True
            partial = f"{self.folder}/partial/{key}"
            with _locked(partial, wait=wait) as descriptor:
                if descriptor is None:
                    return False
                if self.use(key, size):  # another process finished it while we waited for the lock
                    os.unlink(partial)
                    return True
                try:
                    self._reserve(descriptor, size)
                    write(descriptor)
                    # Renamed while locked: a process that waits for this lock then finds the object in its place.
                    _with_folder(lambda target: os.replace(partial, target), self.path(key))
                    return True
                # Also an interrupt: otherwise its bytes would count as used until an eviction.
                except BaseException:
                    with suppress(FileNotFoundError):
                        os.unlink(partial)
                    self._release(size)
                    raise

    def use(self, key: str, size: int) -> bool:
        """Mark an object as used now. False if it is missing or has another size; then it is deleted."""
        target = self.path(key)
        try:
            if os.stat(target).st_size == size:
                os.utime(target)  # not the access time: most systems mount disks with relatime or noatime
                return True
            os.unlink(target)
        except FileNotFoundError:
            pass
        return False

    def discard(self, key: str, size: int) -> None:
        """Delete an object whose bytes turned out to be wrong."""
        with disk_errors(self.folder):
            try:
                os.unlink(self.path(key))
            except FileNotFoundError:
                return  # another process deleted it and has subtracted its size
            self._release(size)

    @contextmanager
    def pin(self, keys: Iterable[str]) -> Iterator[None]:
        """No process evicts these objects, here or still to come, until the block or this process ends."""
        path = f"{self.folder}/pins/{writer_name()}"
        with ExitStack() as stack:
            with disk_errors(self.folder):
                descriptor = stack.enter_context(_locked(path))
                assert descriptor is not None
                stack.callback(_unlink_if_there, path)
                write_all(descriptor, "".join(keys).encode())
            yield

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
        pinned = self._pinned()
        found = sorted(self._scan())
        left = sum(size for _, size, _ in found)
        to_bytes = min(to_bytes, left - to_free)
        for _, size, path in found:
            if left <= to_bytes:
                break
            # A partial file that is left here is being made: _clear_leftovers would have deleted any other.
            if path.parent.name != "partial" and path.name not in pinned:
                path.unlink(missing_ok=True)
                left -= size
        return left

    def _clear_leftovers(self) -> None:
        for name in _names(self.folder / "partial"):
            path = f"{self.folder}/partial/{name}"
            with _locked(path, wait=False, create=False) as descriptor:
                if descriptor is not None:  # nobody has it locked, so nobody is making it
                    os.unlink(path)

    def _pinned(self) -> set[str]:
        """Keys that running processes need. Pins of processes that have ended are deleted."""
        keys: set[str] = set()
        for name in _names(self.folder / "pins"):
            path = f"{self.folder}/pins/{name}"
            with _locked(path, wait=False, create=False) as descriptor:
                if descriptor is not None:  # the process that had it locked has ended
                    os.unlink(path)
                    continue
            with suppress(FileNotFoundError):
                text = Path(path).read_text()
                keys.update(text[n : n + _KEY_DIGITS] for n in range(0, len(text), _KEY_DIGITS))
        return keys

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

    cache: HostCache
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


def default_folder() -> Path:
    """$KDCACHE_CACHE/shards, or ~/.cache/kdcache/shards if the variable is not set. Decoded images are there too."""
    chosen = os.environ.get("KDCACHE_CACHE")
    return (Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "kdcache") / "shards"


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


def write_all(descriptor: int, data: bytes) -> None:
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


def _unlink_if_there(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise KDCacheError(
            f"cannot write into the cache {folder}: {error.strerror}",
            hint="free some disk space" if full else "set KDCACHE_CACHE to another folder",
        ) from None
