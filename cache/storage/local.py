"""Local objects: files of a local or NFS folder.

A new object is written to a temporary file, synced, and then linked to its name. It is either absent or complete, and
of two writers exactly one wins. A store is untrusted data: links in it are not followed, and pipes are not waited for.
The folder of the store itself may be a link, because its user made it.
"""

import errno
import os
import shutil
import stat
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from kdcache.cache.errors import StoreDamagedError
from kdcache.cache.storage.objects import ByteRange, ListedObject, Objects, failure, reading
from kdcache.cache.storage.writers import is_left_behind, writer_name


def open_plain(root: Path | str, path: str) -> int:
    """A descriptor for reading the file. Raises StoreDamagedError if it is not a regular file, and OSError."""
    require_inside(root, path)
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would block without end.
        descriptor = os.open(f"{root}/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link (from O_NOFOLLOW), a socket
            raise _no_object(root, path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_object(root, path)
    return descriptor


def plain_size(root: Path | str, path: str) -> int:
    """Size of the file in bytes. Raises as `open_plain`."""
    require_inside(root, path)
    found = os.lstat(f"{root}/{path}")
    if not stat.S_ISREG(found.st_mode):
        raise _no_object(root, path)
    return found.st_size


def require_inside(root: Path | str, path: str) -> None:
    """Raises StoreDamagedError if a folder on the way to `path` is a link. Costs about 1 us for each folder."""
    # O_NOFOLLOW protects the last part of a path only, so every folder before it is checked here.
    start = 0
    while (end := path.find("/", start)) >= 0:
        try:
            if stat.S_ISLNK(os.lstat(f"{root}/{path[:end]}").st_mode):
                raise _no_object(root, path[:end])
        except (FileNotFoundError, NotADirectoryError):
            return  # the path does not exist, so it cannot lead out of the store
        start = end + 1


def _no_object(root: Path | str, path: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"{root}/{path} is a link or not a regular file: a store contains only regular files in regular folders",
        hint="replace it with the file or folder that it refers to; only the store's own folder may be a link",
    )


# Half-written objects, named by `writer_name`; on the store's disk, as links need one disk
TEMP_FOLDER = "kd/tmp"
MAX_OPEN_FILES = 64  # for reading ranges; a pool of 8 units with 3 arrays uses 24

_LARGE_READ_BYTES = 2**20


class LocalObjects(Objects):
    """Objects as files. Needs a file system with hard links.

    The last MAX_OPEN_FILES files that ranges were read from stay open: opening a file costs more than reading a small
    entry from it, and over NFS one more round trip. Copies, also in other processes, open their own files.
    """

    creates_once = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)
        # A cache for each instance: one for the method would keep every instance alive.
        self._open = lru_cache(MAX_OPEN_FILES)(_OpenFile)

    def __reduce__(self) -> tuple[type["LocalObjects"], tuple[Path]]:
        # A DataLoader's workers get a copy. Open descriptors mean nothing in another process.
        return LocalObjects, (self.root,)

    def get(self, path: str) -> bytes:
        with reading(self.url, path), os.fdopen(open_plain(self.root, path), "rb") as file:
            return file.read()

    def put_new(self, path: str, data: bytes) -> bool:
        with self._writing(path) as (temp, target):
            return _link_new(temp, target, data)

    def replace(self, path: str, data: bytes) -> None:
        with self._writing(path) as (temp, target):
            _write_through(temp, data)
            temp.replace(target)
            sync_folder(target.parent)
        self._open.cache_clear()  # an open descriptor would continue to give the old bytes

    def overwrite(self, path: str, data: bytes) -> None:
        # No fsync: nothing depends on a lease, and its builder renews it soon.
        with self._writing(path) as (temp, target):
            with _new_file(temp) as file:
                file.write(data)
            temp.replace(target)

    @contextmanager
    def _writing(self, path: str) -> Iterator[tuple[Path, Path]]:
        """Paths of a temporary file and of the object, in folders that exist. Errors in the block get hints."""
        target = self.root / path
        name = f"{TEMP_FOLDER}/{writer_name()}"
        temp = self.root / name
        require_inside(self.root, path)
        require_inside(self.root, name)
        try:
            _make_folder(target.parent)
            _make_folder(temp.parent)
            yield temp, target
        except OSError as error:
            raise failure("write", str(target), error, hint=_WRITE_HINTS.get(error.errno or 0)) from None

    def remove(self, path: str) -> None:
        require_inside(self.root, path)
        try:
            (self.root / path).unlink(missing_ok=True)
        except OSError as error:
            raise failure("remove", f"{self.root / path}", error) from None

    def remove_all(self) -> None:
        try:
            shutil.rmtree(self.root)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise failure("remove", self.url, error) from None

    def remove_leftovers(self) -> None:
        self.remove_many(
            [f"{TEMP_FOLDER}/{name}" for name in self.names(TEMP_FOLDER) if is_left_behind(name)]
        )

    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        if len(ranges) > 1 and hasattr(os, "posix_fadvise"):
            # The disk fetches all ranges while we wait for the first: 16 cold entries take half the time; warm ones
            # cost 2 us more each. Merging neighbouring ranges would gain nothing: shuffled entries are rarely
            # neighbours.
            for path, start, length in ranges:
                with reading(self.url, path):
                    file = self._file(path)
                    os.posix_fadvise(file.descriptor, start, length, os.POSIX_FADV_WILLNEED)
        return [self._read(*each) for each in ranges]

    def _read(self, path: str, start: int, length: int) -> bytes:
        # Not a memory map: it would save one copy, a fiftieth of the cost of unpacking, but if the file is truncated
        # while mapped, the process dies of SIGBUS.
        with reading(self.url, path):
            # Keep the reference: another thread could push it out of the cache, closing it
            file = self._file(path)
            if length > _LARGE_READ_BYTES:  # pread allocates `length` bytes first, however short the file is
                length = min(length, os.fstat(file.descriptor).st_size)
            return os.pread(file.descriptor, length, start)

    def _file(self, path: str) -> "_OpenFile":
        # The process id is part of the key: a forked process must not share descriptors with its parent.
        return self._open(self.url, path, os.getpid())

    def size(self, path: str) -> int:
        with reading(self.url, path):
            return plain_size(self.root, path)

    def names(self, folder: str) -> list[str]:
        require_inside(self.root, f"{folder}/" if folder else "")
        try:
            with reading(self.url, folder):
                return sorted(os.listdir(self.root / folder))
        except FileNotFoundError:
            return []

    def walk(self, folder: str) -> list[ListedObject]:
        require_inside(self.root, f"{folder}/" if folder else "")
        found = []
        for folder_path, _, names in os.walk(self.root / folder):
            for name in names:
                path = Path(folder_path, name)
                with (
                    suppress(FileNotFoundError),
                    reading(self.url, folder),
                ):  # another process may delete it meanwhile
                    status = path.lstat()
                    found.append(
                        ListedObject(path.relative_to(self.root).as_posix(), status.st_size, status.st_mtime)
                    )
        return sorted(found)

    def free_bytes(self) -> int | None:
        with reading(self.url, ""):
            return shutil.disk_usage(self.nearest_folder()).free

    def stop_retrying(self) -> None:
        """Nothing to do: errors of a disk are never retried."""

    def nearest_folder(self) -> Path:
        """The root, or its nearest parent folder that exists."""
        return next(folder for folder in (self.root, *self.root.parents) if folder.is_dir())


class _OpenFile:
    """A file open for reading. It is closed when the last reference to it is gone."""

    def __init__(self, root: str, path: str, process: int) -> None:
        self.descriptor = open_plain(root, path)
        weakref.finalize(self, os.close, self.descriptor)


_ELSEWHERE = "choose another --home or --store"
_FREE_SPACE = "free some space and run the same command again: it continues after the last committed unit"
_WRITE_HINTS = {
    errno.EPERM: f"the file system must support hard links; {_ELSEWHERE}",
    errno.EOPNOTSUPP: f"the file system must support hard links; {_ELSEWHERE}",
    errno.EACCES: f"check the folder's permissions, or {_ELSEWHERE}",
    errno.EROFS: _ELSEWHERE,
    errno.EEXIST: f"a file is in the place of a folder; remove it, or {_ELSEWHERE}",
    errno.ENOTDIR: f"a file is in the place of a folder; remove it, or {_ELSEWHERE}",
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
}


def _link_new(temp: Path, target: Path, data: bytes) -> bool:
    try:
        _write_through(temp, data)
        os.link(temp, target)  # unlike rename, a link fails if the name exists: one writer wins
        created = True
    except FileExistsError:
        # Over NFS the reply to our own successful link may be lost and retried
        created = temp.stat().st_nlink == 2
    finally:
        temp.unlink(missing_ok=True)
    sync_folder(target.parent)  # also for the loser, who then commits what the winner wrote
    return created


def _write_through(file: Path, data: bytes) -> None:
    """Write a new file. Its bytes are on the disk when this returns."""
    with _new_file(file) as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def _new_file(temp: Path) -> BinaryIO:
    """A new, empty file. One of that name is of a killed writer, or a planted link, and is removed."""
    temp.unlink(missing_ok=True)
    return open(temp, "xb")


def _make_folder(folder: Path) -> None:
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    # A new folder is an entry in its parent, which a power failure loses unless it is synced
    for made in missing:
        sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    """Make new names in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
