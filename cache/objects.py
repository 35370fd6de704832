"""Objects: named bytes under a prefix, created once and never changed. The only door to storage.

A local or NFS folder gets the guarantee from temp file + fsync + hard link: an object is either absent or whole, and
of two writers one wins. S3 gets it from conditional puts (`If-None-Match: *`, fsspec's create mode). fsspec's create
mode is exists-then-write everywhere else, so other file systems are for one builder at a time.
"""

import hashlib
import os
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from kdcache.cache.errors import KDCacheError, StoreDamagedError, UsageError

TEMP_FOLDER = "kd/tmp"  # half-written local objects; a name is <host>-<process>-<number>


class Objects(ABC):
    """Objects under one prefix, addressed by relative paths with forward slashes."""

    url: str

    @abstractmethod
    def get(self, path: str) -> bytes:
        """The whole object. Raises FileNotFoundError."""

    @abstractmethod
    def put_new(self, path: str, data: bytes) -> bool:
        """Create the object, atomically; False, and nothing changed, where one stands already."""

    @abstractmethod
    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer at the end of the object. Raises FileNotFoundError."""

    @abstractmethod
    def size(self, path: str) -> int:
        """Bytes of the object. Raises FileNotFoundError."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Names, sorted, of the objects and folders directly in `folder`; none where it does not exist."""

    def put_same(self, path: str, data: bytes) -> bytes:
        """Create the object or adopt the one that stands: the bytes that are there afterwards."""
        return data if self.put_new(path, data) else self.get(path)


class LocalObjects(Objects):
    """Objects as files. Needs a file system with hard links."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def get(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def put_new(self, path: str, data: bytes) -> bool:
        target = self.root / path
        temp = self.root / TEMP_FOLDER / f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"
        try:
            _make_folder(target.parent)
            _make_folder(temp.parent)
            return _link_new(temp, target, data)
        except OSError as error:
            raise KDCacheError(
                f"cannot write {target}: {error.strerror}", hint=_WRITE_HINTS.get(error.errno or 0)
            ) from None

    def read_range(self, path: str, start: int, length: int) -> bytes:
        with open(self.root / path, "rb") as file:
            return os.pread(file.fileno(), length, start)

    def size(self, path: str) -> int:
        return (self.root / path).stat().st_size

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove_own_leftovers(self) -> None:
        """Delete temp files of processes of this host that are gone: a killed builder leaves at most a few."""
        for name in self.names(TEMP_FOLDER):
            host, process = name.rsplit("-", 2)[:2]
            if host == socket.gethostname() and not _is_running(int(process)):
                (self.root / TEMP_FOLDER / name).unlink(missing_ok=True)


class RemoteObjects(Objects):
    """Objects behind any fsspec file system; endpoint and credentials come the way its users set them."""

    def __init__(self, url: str) -> None:
        self.url = redact(url)
        options: dict[str, Any] = {"use_listings_cache": False} if url.startswith(("s3:", "s3a:")) else {}
        try:
            self.fs, self.prefix = url_to_fs(url, **options)
        except ImportError as error:
            raise UsageError(
                f"{self.url}: {error}", hint="pip install 'kdcache[s3]' for s3:// URLs"
            ) from None
        except ValueError as error:
            raise UsageError(f"{self.url}: {error}", hint=f"known schemes: {_known_schemes()}") from None

    def get(self, path: str) -> bytes:
        return bytes(self.fs.cat_file(self._full(path)))

    def put_new(self, path: str, data: bytes) -> bool:
        full = self._full(path)
        if not _is_s3(self.fs) and self.fs.exists(full):
            return False
        try:
            self.fs.pipe_file(full, data, mode="create")
        except (FileExistsError, OSError) as error:
            if not _is_precondition_failure(error):
                raise KDCacheError(f"cannot write {redact(self.url)}/{path}: {error}") from None
            # A retry after a lost reply meets its own object: the bytes decide whose it is.
            return bytes(self.fs.cat_file(full)) == data
        return True

    def read_range(self, path: str, start: int, length: int) -> bytes:
        return bytes(self.fs.cat_file(self._full(path), start=start, end=start + length))

    def size(self, path: str) -> int:
        return int(self.fs.size(self._full(path)))

    def names(self, folder: str) -> list[str]:
        try:
            found = self.fs.ls(self._full(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    def _full(self, path: str) -> str:
        return f"{self.prefix}/{path}" if path else str(self.prefix)


def open_objects(url: str) -> Objects:
    """The objects under a local folder, a file:// URL or any URL that fsspec knows."""
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    return RemoteObjects(url) if "://" in url else LocalObjects(Path(url))


def sha256(data: bytes) -> str:
    """Hex digest, the form in which the ledger names objects."""
    return hashlib.sha256(data).hexdigest()


def redact(url: str) -> str:
    """The URL without user information, fit for messages and records."""
    return re.sub(r"://[^/@]*@", "://", url)


def join_url(home: str, name: str) -> str:
    """The URL of `name` under `home`."""
    return f"{home.rstrip('/')}/{name}"


def require_object(objects: Objects, path: str) -> bytes:
    """The object's bytes, or StoreDamagedError: for objects that something committed depends on."""
    try:
        return objects.get(path)
    except FileNotFoundError:
        raise StoreDamagedError(f"{objects.url}/{path} is missing") from None


_numbers: Iterator[int] = count()

_WRITE_HINTS = {
    1: "the file system must support hard links; choose another --home",
    13: "check the folder's permissions, or choose another --home",
    28: "free some space, or choose another --home; what is committed stays, the same command goes on from there",
    30: "choose another --home",
    95: "the file system must support hard links; choose another --home",
}


def _link_new(temp: Path, target: Path, data: bytes) -> bool:
    with open(temp, "wb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.link(temp, target)
            created = True
        except FileExistsError:
            created = temp.stat().st_nlink == 2  # over NFS the reply to our own link may have been lost
        finally:
            temp.unlink()
    _sync_folder(target.parent)
    return created


def _make_folder(folder: Path) -> None:
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return "s3" in protocols


def _is_precondition_failure(error: BaseException) -> bool:
    if isinstance(error, FileExistsError):
        return True
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code") in ("PreconditionFailed", "ConditionalRequestConflict")


def _known_schemes() -> str:
    return "a local path, s3://, gs://, memory:// and the others of fsspec"
