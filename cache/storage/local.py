"""Local objects: files of a local or NFS folder.

An object comes as a temporary file, fsync and a hard link: it is either absent or whole, and of two writers one wins.
A store is data: a link in it is not followed and a pipe is not waited for. The folder itself may be a link, which its
user made.
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
from kdcache.cache.storage.objects import ByteRange, Objects, Stored, failure, reading
from kdcache.cache.storage.writers import is_left_behind, writer_name


def open_plain(root: Path | str, path: str) -> int:
    """A descriptor of the file to read from. Raises StoreDamagedError for anything but a plain one, and OSError."""
    require_inside(root, path)
    try:
        # Without waiting: a pipe without a writer would hold us for ever.
        descriptor = os.open(f"{root}/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise _no_object(root, path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_object(root, path)
    return descriptor


def plain_size(root: Path | str, path: str) -> int:
    """Bytes of the file. Raises as `open_plain`."""
    require_inside(root, path)
    found = os.lstat(f"{root}/{path}")
    if not stat.S_ISREG(found.st_mode):
        raise _no_object(root, path)
    return found.st_size


def require_inside(root: Path | str, path: str) -> None:
    """Raises StoreDamagedError where a folder on the way to `path` is a link. Costs a look, 1 us, for each."""
    start = 0
    while (end := path.find("/", start)) >= 0:
        try:
            if stat.S_ISLNK(os.lstat(f"{root}/{path[:end]}").st_mode):
                raise _no_object(root, path[:end])
        except (FileNotFoundError, NotADirectoryError):
            return  # nothing is there, so nothing leads elsewhere
        start = end + 1


def _no_object(root: Path | str, path: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"{root}/{path} is a link or no plain file: a store holds plain files in plain folders alone",
        hint="put what it stands for in its place; the store's own folder may be a link",
    )


TEMP_FOLDER = "kd/tmp"  # half-written objects, by `writer_name`
MAX_OPEN_FILES = 64  # that ranges are read from; a pool of 8 units with 3 arrays has 24

_LARGE_READ_BYTES = 2**20


class LocalObjects(Objects):
    """Objects as files. Needs a file system with hard links.

    Files that ranges are read from stay open, the last MAX_OPEN_FILES of them: opening costs more than reading a small
    entry, over NFS a round trip. Copies, also in other processes, open their own.
    """

    creates_once = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)
        self._open = lru_cache(MAX_OPEN_FILES)(_OpenFile)

    def __reduce__(self) -> tuple[type["LocalObjects"], tuple[Path]]:
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
        self._open.cache_clear()  # a file that is open would go on giving the old bytes

    def overwrite(self, path: str, data: bytes) -> None:
        with self._writing(path) as (temp, target):
            with _new_file(temp) as file:
                file.write(data)
            temp.replace(target)

    @contextmanager
    def _writing(self, path: str) -> Iterator[tuple[Path, Path]]:
        """A temporary file's place and the object's, in folders that exist; errors of the block with hints."""
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
            # The disk fetches all of them while the first is waited for: 16 cold entries in half the time, warm ones
            # for 2 us more each. Merging neighbours would gain nothing: shuffled entries seldom are.
            for path, start, length in ranges:
                with reading(self.url, path):
                    file = self._file(path)
                    os.posix_fadvise(file.descriptor, start, length, os.POSIX_FADV_WILLNEED)
        return [self._read(*each) for each in ranges]

    def _read(self, path: str, start: int, length: int) -> bytes:
        # No memory map: it would save a copy, a fiftieth of what unpacking costs, and a file that is cut off under it
        # ends the process with SIGBUS.
        with reading(self.url, path):
            file = self._file(path)  # held here, or another thread could push it out and close it
            if length > _LARGE_READ_BYTES:  # room is made for all that is asked for
                length = min(length, os.fstat(file.descriptor).st_size)
            return os.pread(file.descriptor, length, start)

    def _file(self, path: str) -> "_OpenFile":
        # The process is part of the key: a fork shares no descriptor with its parent.
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

    def walk(self, folder: str) -> list[Stored]:
        require_inside(self.root, f"{folder}/" if folder else "")
        found = []
        for place, _, names in os.walk(self.root / folder):
            for name in names:
                path = Path(place, name)
                with suppress(FileNotFoundError), reading(self.url, folder):  # it may go meanwhile
                    status = path.lstat()
                    found.append(
                        Stored(path.relative_to(self.root).as_posix(), status.st_size, status.st_mtime)
                    )
        return sorted(found)

    def free_bytes(self) -> int | None:
        with reading(self.url, ""):
            return shutil.disk_usage(self.nearest_folder()).free

    def hurry(self) -> None:
        """Nothing to do: a disk that fails is not waited for."""

    def nearest_folder(self) -> Path:
        """The root, or the folder above it that exists."""
        return next(folder for folder in (self.root, *self.root.parents) if folder.is_dir())


class _OpenFile:
    """A file to read from, closed when nobody holds it any more."""

    def __init__(self, root: str, path: str, process: int) -> None:
        self.descriptor = open_plain(root, path)
        weakref.finalize(self, os.close, self.descriptor)


_ELSEWHERE = "choose another --home or --store"
_WRITE_HINTS = {
    errno.EPERM: f"the file system must support hard links; {_ELSEWHERE}",
    errno.EOPNOTSUPP: f"the file system must support hard links; {_ELSEWHERE}",
    errno.EACCES: f"check the folder's permissions, or {_ELSEWHERE}",
    errno.EROFS: _ELSEWHERE,
    errno.EEXIST: f"a file stands where a folder has to be; {_ELSEWHERE}",
    errno.ENOTDIR: f"a file stands where a folder has to be; {_ELSEWHERE}",
    errno.ENOSPC: "free some space; what is committed stays, and the same command goes on from there",
    errno.EDQUOT: "free some space; what is committed stays, and the same command goes on from there",
}


def _link_new(temp: Path, target: Path, data: bytes) -> bool:
    try:
        _write_through(temp, data)
        os.link(temp, target)
        created = True
    except FileExistsError:
        created = temp.stat().st_nlink == 2  # over NFS the reply to our own link may have been lost
    finally:
        temp.unlink(missing_ok=True)
    sync_folder(target.parent)
    return created


def _write_through(file: Path, data: bytes) -> None:
    """Write a file that is on the disk when this returns."""
    with _new_file(file) as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def _new_file(temp: Path) -> BinaryIO:
    """A file that nobody had a hand in: what stands there is of a killed writer, or a stranger's link."""
    temp.unlink(missing_ok=True)
    return open(temp, "xb")


def _make_folder(folder: Path) -> None:
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    """Make names that came into `folder` last through a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
