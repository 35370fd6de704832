"""Objects: named bytes under a prefix, created once and never changed. The only door to storage.

A local or NFS folder gets the guarantee from temp file + fsync + hard link: an object is either absent or whole, and
of two writers one wins. S3 gets it from conditional puts (`If-None-Match: *`, fsspec's create mode). fsspec's create
mode is exists-then-write everywhere else, so other file systems are for one builder at a time.

Whatever a remote storage does for a moment, 500, 503, timeouts, resets, bodies cut short, is waited out here.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
import socket
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar

import fsspec
from fsspec.core import url_to_fs

from kdcache.cache.errors import KDCacheError, StoreDamagedError, UsageError
from kdcache.cache.plainfiles import open_plain, plain_size, require_inside
from kdcache.cache.retries import Patience, concerns_credentials, passes, refusal_code, try_again

_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)

TEMP_FOLDER = "kd/tmp"  # half-written local objects; a name is <host>-<process>-<number>
PROBE_PREFIX = ".kdcache-probe-"  # of the folders of `open_probe`
MAX_OPEN_FILES = 64  # of local objects that ranges are read from; a pool of 8 units with 3 arrays has 24

_LARGE_READ_BYTES = 2**20


class ByteRange(NamedTuple):
    """`length` bytes of an object from `start`."""

    path: str
    start: int
    length: int


class Stored(NamedTuple):
    """An object, as a listing has it."""

    path: str
    size: int  # bytes
    modified_s: float  # since 1970, by the storage's clock


class Upload(NamedTuple):
    """A multipart upload that was begun and neither completed nor aborted."""

    path: str
    id: str
    size: int  # bytes, of the parts that arrived
    begun_s: float  # since 1970, by the storage's clock


class Objects(ABC):
    """Objects under one prefix, addressed by relative paths with forward slashes.

    Whatever else goes wrong, no permission, no network, is a KDCacheError that names the object.
    """

    url: str
    creates_once: bool  # of many writers of one object one wins; else one builder at a time

    @abstractmethod
    def get(self, path: str) -> bytes:
        """The whole object. Raises FileNotFoundError."""

    @abstractmethod
    def put_new(self, path: str, data: bytes) -> bool:
        """Create the object, atomically; False, and nothing changed, where another stands already."""

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Put the object in the place of what stands there: for repairs alone, which nobody may be building beside.

        Raises KDCacheError where another changed it in the same moment.
        """

    @abstractmethod
    def overwrite(self, path: str, data: bytes) -> None:
        """Put the object whatever stands there; it may be lost with the machine. For leases, which nothing depends on."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Delete the object, if it is there."""

    @abstractmethod
    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """The bytes of every range, fewer at the end of an object. Their waits overlap, as far as the storage lets them.

        Raises FileNotFoundError, which says where.
        """

    @abstractmethod
    def size(self, path: str) -> int:
        """Bytes of the object. Raises FileNotFoundError."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Names, sorted, of the objects and folders directly in `folder`; none where it does not exist."""

    @abstractmethod
    def walk(self, folder: str) -> list[Stored]:
        """All objects in `folder` and below, sorted by path; a bucket takes one request for a thousand."""

    @abstractmethod
    def remove_many(self, paths: Sequence[str]) -> None:
        """Delete objects; one that is not there is no error. For what nothing refers to any more."""

    def uploads(self) -> list[Upload]:
        """Unfinished multipart uploads under the prefix, where the storage knows such a thing."""
        return []

    def abort(self, upload: Upload) -> None:
        """Drop one of `uploads` with its parts; one that is gone is no error."""
        raise KDCacheError(f"{self.url} has no uploads, so not that of {upload.path}")

    @abstractmethod
    def remove_leftovers(self) -> None:
        """Delete what killed writers of this host left half-written; objects are never touched."""

    @abstractmethod
    def remove_all(self) -> None:
        """Delete all objects and the prefix itself: for what nothing refers to, see `open_probe`."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Bytes that still fit; None where nobody says, as of a bucket."""

    @abstractmethod
    def hurry(self) -> None:
        """Wait no more for a storage that does not answer, from now on: for whoever is on the way out."""

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer at the end of the object. Raises FileNotFoundError."""
        return self.read_ranges([ByteRange(path, start, length)])[0]

    def put_same(self, path: str, data: bytes) -> bytes:
        """Create the object or adopt the one that stands: the bytes that are there afterwards."""
        return data if self.put_new(path, data) else self.get(path)


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
        with _reading(self.url, path), os.fdopen(open_plain(self.root, path), "rb") as file:
            return file.read()

    def put_new(self, path: str, data: bytes) -> bool:
        with self._writing(path) as (temp, target):
            return _link_new(temp, target, data)

    def replace(self, path: str, data: bytes) -> None:
        with self._writing(path) as (temp, target):
            _move_over(temp, target, data)
        self._open.cache_clear()  # a file that is open would go on giving the old bytes

    def overwrite(self, path: str, data: bytes) -> None:
        with self._writing(path) as (temp, target):
            with _new_file(temp) as file:
                file.write(data)
            temp.replace(target)

    def remove(self, path: str) -> None:
        require_inside(self.root, path)
        try:
            (self.root / path).unlink(missing_ok=True)
        except OSError as error:
            raise KDCacheError(f"cannot remove {self.root / path}: {error.strerror}") from None

    @contextmanager
    def _writing(self, path: str) -> Iterator[tuple[Path, Path]]:
        """A temporary file's place and the object's, in folders that exist; errors of the block with hints."""
        target = self.root / path
        name = f"{TEMP_FOLDER}/{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"
        temp = self.root / name
        require_inside(self.root, path)
        require_inside(self.root, name)
        try:
            _make_folder(target.parent)
            _make_folder(temp.parent)
            yield temp, target
        except OSError as error:
            raise KDCacheError(
                f"cannot write {target}: {error.strerror}", hint=_WRITE_HINTS.get(error.errno or 0)
            ) from None

    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        if len(ranges) > 1 and hasattr(os, "posix_fadvise"):
            # The disk fetches all of them while the first is waited for: 16 cold entries in half the time, warm ones
            # for 2 us more each. Merging neighbours would gain nothing: shuffled entries seldom are.
            for path, start, length in ranges:
                with _reading(self.url, path):
                    file = self._file(path)
                    os.posix_fadvise(file.descriptor, start, length, os.POSIX_FADV_WILLNEED)
        return [self._read(*each) for each in ranges]

    def _read(self, path: str, start: int, length: int) -> bytes:
        # No memory map: it would save a copy, a fiftieth of what unpacking costs, and a file that is cut off under it
        # ends the process with SIGBUS.
        with _reading(self.url, path):
            file = self._file(path)  # held here, or another thread could push it out and close it
            if length > _LARGE_READ_BYTES:  # room is made for all that is asked for
                length = min(length, os.fstat(file.descriptor).st_size)
            return os.pread(file.descriptor, length, start)

    def _file(self, path: str) -> "_OpenFile":
        # The process is part of the key: a fork shares no descriptor with its parent.
        return self._open(self.url, path, os.getpid())

    def size(self, path: str) -> int:
        with _reading(self.url, path):
            return plain_size(self.root, path)

    def names(self, folder: str) -> list[str]:
        require_inside(self.root, f"{folder}/" if folder else "")
        try:
            with _reading(self.url, folder):
                return sorted(os.listdir(self.root / folder))
        except FileNotFoundError:
            return []

    def walk(self, folder: str) -> list[Stored]:
        require_inside(self.root, f"{folder}/" if folder else "")
        found = []
        for place, _, names in os.walk(self.root / folder):
            for name in names:
                path = Path(place, name)
                with suppress(FileNotFoundError), _reading(self.url, folder):  # it may go meanwhile
                    status = path.lstat()
                    found.append(
                        Stored(path.relative_to(self.root).as_posix(), status.st_size, status.st_mtime)
                    )
        return sorted(found)

    def remove_many(self, paths: Sequence[str]) -> None:
        for path in paths:
            self.remove(path)

    def remove_leftovers(self) -> None:
        for name in self.names(TEMP_FOLDER):
            writer = re.fullmatch(r"(.+)-(\d+)-\d+", name)
            if writer and writer[1] == socket.gethostname() and not is_running(int(writer[2])):
                (self.root / TEMP_FOLDER / name).unlink(missing_ok=True)

    def remove_all(self) -> None:
        try:
            shutil.rmtree(self.root)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise KDCacheError(f"cannot remove {self.root}: {error.strerror}") from None

    def free_bytes(self) -> int | None:
        with _reading(self.url, ""):
            return shutil.disk_usage(self.nearest_folder()).free

    def hurry(self) -> None:
        """Nothing to do: a disk that fails is not waited for."""

    def nearest_folder(self) -> Path:
        """The root, or the folder above it that exists."""
        return next(folder for folder in (self.root, *self.root.parents) if folder.is_dir())


class RemoteObjects(Objects):
    """Objects behind any fsspec file system; endpoint and credentials come the way its users set them."""

    patience = Patience()

    def __init__(self, url: str) -> None:
        self.url = redact(url)
        s3 = url.startswith(("s3:", "s3a:"))
        try:
            self.fs, self.prefix = url_to_fs(url, **(_s3_options() if s3 else {}))
        except ImportError as error:
            raise UsageError(
                f"{self.url}: {error}", hint="pip install 'kdcache[s3]' for s3:// URLs"
            ) from None
        except ValueError as error:
            raise UsageError(
                f"{self.url}: {error}",
                hint="a local path, s3://, gs://, memory:// or another scheme of fsspec",
            ) from None
        if s3:
            self.fs.retries = 1  # see retries.py
        self._is_s3 = self.creates_once = s3  # the latter until a probe says otherwise
        # Never in parts: of four multipart uploads completed at once, all `If-None-Match`, SeaweedFS let up to four win.
        self._put_options = {"chunksize": _MAX_PUT_BYTES} if s3 else {}
        self._answered = self._hurries = False

    def get(self, path: str) -> bytes:
        with _reading(self.url, path):
            return bytes(self._try_again(lambda: self.fs.cat_file(self._full(path))))

    def put_new(self, path: str, data: bytes) -> bool:
        full = self._full(path)

        def put() -> bool:
            if not self.creates_once and self.fs.exists(full):
                return False
            mode = "create" if self.creates_once else "overwrite"
            self.fs.pipe_file(full, data, mode=mode, **self._put_options)
            return True

        return self._create(path, data, put)

    def _create(self, path: str, data: bytes, put: Callable[[], bool]) -> bool:
        try:
            return self._try_again(put)
        except Exception as error:  # every file system has errors of its own
            if not isinstance(error, FileExistsError) and refusal_code(error) != "PreconditionFailed":
                raise _failure("write", f"{self.url}/{path}", error) from error
        # A retry after a lost reply meets its own object: the bytes decide whose it is.
        try:
            return self.get(path) == data
        except FileNotFoundError:  # a lease, which its holder has removed meanwhile
            return False

    def replace(self, path: str, data: bytes) -> None:
        full = self._full(path)
        try:
            stands = self.fs.info(full) if self.fs.exists(full) else {}
            # One request, whatever its size: of several, only the first could carry the condition.
            match = {"IfMatch": stands["ETag"], "chunksize": len(data) + 1} if "ETag" in stands else {}
            self.fs.pipe_file(full, data, **match)
        except Exception as error:  # every file system has errors of its own
            raise _failure("write", f"{self.url}/{path}", error) from error

    def overwrite(self, path: str, data: bytes) -> None:
        try:
            self._try_again(lambda: self.fs.pipe_file(self._full(path), data))
        except Exception as error:  # every file system has errors of its own
            raise _failure("write", f"{self.url}/{path}", error) from error

    def remove(self, path: str) -> None:
        try:
            self._try_again(lambda: self.fs.rm_file(self._full(path)))
        except FileNotFoundError:
            pass
        except Exception as error:  # every file system has errors of its own
            raise _failure("remove", f"{self.url}/{path}", error) from error

    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        found: dict[int, bytes | Exception] = {}

        def ask() -> None:
            missing = [n for n in range(len(ranges)) if isinstance(found.get(n, OSError()), Exception)]
            asked = [ranges[n] for n in missing]
            paths = [self._full(each.path) for each in asked]
            starts = [each.start for each in asked]
            ends = [each.start + each.length for each in asked]
            # At once, where the file system can: S3 can, one round trip for all.
            answers = self.fs.cat_ranges(paths, starts, ends, on_error="return")
            found.update(zip(missing, answers, strict=True))
            for answer in answers:
                if isinstance(answer, Exception) and passes(answer):
                    raise answer

        with _reading(self.url, ranges[0].path if ranges else ""):
            self._try_again(ask)
        return [self._whole_or_raise(each.path, found[n]) for n, each in enumerate(ranges)]

    def _whole_or_raise(self, path: str, data: bytes | Exception) -> bytes:
        with _reading(self.url, path):
            if isinstance(data, Exception):
                raise data
        return bytes(data)

    def size(self, path: str) -> int:
        with _reading(self.url, path):
            return int(self._try_again(lambda: self.fs.size(self._full(path))))

    def names(self, folder: str) -> list[str]:
        full = self._full(folder)
        try:
            with _reading(self.url, folder):
                found = [
                    str(name).rstrip("/") for name in self._try_again(lambda: self.fs.ls(full, detail=False))
                ]
        except FileNotFoundError:
            return []
        # Some clients put an object for a folder itself; a listing has it too.
        return sorted(name.rsplit("/", 1)[-1] for name in found if name.strip("/") != full.strip("/"))

    def walk(self, folder: str) -> list[Stored]:
        full = self._full(folder)
        try:
            with _reading(self.url, folder):
                found = self.fs.find(full, detail=True).values()
        except FileNotFoundError:
            return []
        below = [info for info in found if str(info["name"]).startswith(f"{full}/")]
        return sorted(
            Stored(str(info["name"])[len(self.prefix) + 1 :], int(info["size"]), self._modified_s(info))
            for info in below
        )

    def _modified_s(self, info: Mapping[str, Any]) -> float:
        """When an object was put: file systems have names of their own for it."""
        known = (info[name] for name in ("LastModified", "mtime", "created") if info.get(name) is not None)
        return _seconds(next(known, None) or self.fs.modified(info["name"]))

    def remove_many(self, paths: Sequence[str]) -> None:
        try:
            if self._is_s3:
                for start in range(0, len(paths), _DELETED_AT_ONCE):
                    self._delete_at_once(paths[start : start + _DELETED_AT_ONCE])
                return
            for path in paths:
                with suppress(FileNotFoundError):
                    self.fs.rm_file(self._full(path))
        except KDCacheError:
            raise
        except Exception as error:  # every file system has errors of its own
            raise KDCacheError(f"cannot remove objects of {self.url}: {_reason(error)}") from error

    def _delete_at_once(self, paths: Sequence[str]) -> None:
        """One request of S3's, whose answer lists what it refused; s3fs itself passes over that."""
        bucket, _, _ = self.fs.split_path(self.prefix)
        keys = [{"Key": self.fs.split_path(self._full(path))[1]} for path in paths]
        answer = self.fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
        for refused in answer.get("Errors", [])[:1]:
            raise KDCacheError(f"cannot remove {self.url}: {refused['Key']}: {refused.get('Code')}")

    def uploads(self) -> list[Upload]:
        if not self._is_s3:
            return []
        bucket, key, _ = self.fs.split_path(self.prefix)
        under = f"{key}/" if key else ""
        found: list[Upload] = []
        marker: dict[str, str] = {}
        with _reading(self.url, ""):
            while True:
                page = self.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=under, **marker)
                for each in page.get("Uploads", []):
                    parts = self.fs.call_s3(
                        "list_parts", Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"]
                    )
                    size = sum(part["Size"] for part in parts.get("Parts", []))  # of its first thousand
                    path = each["Key"][len(under) :]
                    found.append(Upload(path, each["UploadId"], size, _seconds(each["Initiated"])))
                if not page.get("IsTruncated"):
                    return found
                marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort(self, upload: Upload) -> None:
        bucket, key, _ = self.fs.split_path(self._full(upload.path))
        with suppress(FileNotFoundError), _reading(self.url, upload.path):
            self.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.id)

    def remove_leftovers(self) -> None:
        """Nothing to do: an upload appears whole or not at all. Unfinished multipart ones are `uploads`."""

    def remove_all(self) -> None:
        try:
            self._try_again(lambda: self.fs.rm(self.prefix, recursive=True))
        except FileNotFoundError:
            pass
        except Exception as error:  # every file system has errors of its own
            raise _failure("remove", self.url, error) from error

    def free_bytes(self) -> int | None:
        return None

    def hurry(self) -> None:
        self._hurries = True

    def _try_again(self, ask: Callable[[], _Result]) -> _Result:
        result = try_again(ask, self._limit_s, pauses=self.patience, where=self.url)
        self._answered = True
        return result

    def _limit_s(self) -> float:
        if self._hurries:
            return 0.0
        return self.patience.later_s if self._answered else self.patience.first_s

    def _full(self, path: str) -> str:
        return f"{self.prefix}/{path}" if path else str(self.prefix)


def open_objects(url: str) -> Objects:
    """The objects under a local folder, a file:// URL or any URL that fsspec knows.

    Raises UsageError for a URL with credentials: it would be kept by every shell, process list and run that names it.
    """
    if _USER_INFO.search(url):
        raise UsageError(
            f"{redact(url)} was given with credentials in it",
            hint="leave them out: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, are where they belong",
        )
    for scheme in ("file://", "local://"):
        url = url.removeprefix(scheme)
    return RemoteObjects(url) if "://" in url else LocalObjects(Path(url))


@contextmanager
def open_probe(url: str) -> Iterator[Objects]:
    """An empty prefix of its own under `url`, which goes with all that was put there.

    Where a local `url` does not exist yet it lies in the nearest folder that does, on the same disk: no folder stays.
    """
    home = open_objects(url)
    place = str(home.nearest_folder()) if isinstance(home, LocalObjects) else url
    objects = open_objects(
        join_url(place, f"{PROBE_PREFIX}{socket.gethostname()}-{os.getpid()}-{next(_numbers)}")
    )
    try:
        yield objects
    finally:
        try:
            objects.remove_all()
        except KDCacheError as error:  # some buckets let nobody delete; what was measured still holds
            logger.warning("%s; delete it by hand", error)


def storage_time_s(url: str) -> float:
    """The time since 1970 by the clock of the storage at `url`: an object's that is written there and removed."""
    with open_probe(url) as objects:
        objects.put_new("now", b"now")
        return objects.walk("")[0].modified_s


def sha256(data: bytes) -> str:
    """Hex digest, the form in which the ledger names objects."""
    return hashlib.sha256(data).hexdigest()


def redact(url: str) -> str:
    """The URL without user information, fit for messages and records."""
    return _USER_INFO.sub("://", url)


def join_url(home: str, name: str) -> str:
    """The URL of `name` under `home`."""
    return f"{home.rstrip('/')}/{name}"


class Readable(Protocol):
    """What objects can be read from whole."""

    url: str

    def get(self, path: str) -> bytes: ...


def require_object(objects: Readable, path: str) -> bytes:
    """The object's bytes, or StoreDamagedError: for objects that something committed depends on."""
    try:
        return objects.get(path)
    except FileNotFoundError:
        raise StoreDamagedError(f"{objects.url}/{path} is missing") from None


_MAX_PUT_BYTES = 5 * 2**30  # of S3


class _OpenFile:
    """A file to read from, closed when nobody holds it any more."""

    def __init__(self, root: str, path: str, process: int) -> None:
        self.descriptor = open_plain(root, path)
        weakref.finalize(self, os.close, self.descriptor)


# A key may hold slashes; what follows a colon is one, unless it is a port.
_USER_INFO = re.compile(r"://(?:[^/@\s]*|[^/@\s:]*:(?!\d+/)[^@\s]*)@")

_numbers: Iterator[int] = count()

_DELETED_AT_ONCE = 1000  # as many as S3 takes in a request

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

_CREDENTIALS_HINT = (
    "check the credentials and what they allow (AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN, the clock); nothing "
    "is lost, and the same command goes on from here"
)


@contextmanager
def _reading(url: str, path: str) -> Iterator[None]:
    """FileNotFoundError for what is not there, KDCacheError for what cannot be reached."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{url}/{path}") from None
    except KDCacheError:
        raise
    except Exception as error:  # every file system has errors of its own
        raise _failure("read", f"{url}/{path}".rstrip("/"), error) from error


def _failure(what: str, where: str, error: Exception) -> KDCacheError:
    remote = "://" in where
    hint = _CREDENTIALS_HINT if remote and concerns_credentials(error) else None
    return KDCacheError(f"cannot {what} {where}: {_reason(error)}", hint=hint)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return redact(" ".join(str(error).split()) or type(error).__name__)


def _seconds(moment: datetime | float) -> float:
    """Seconds since 1970."""
    return moment.timestamp() if isinstance(moment, datetime) else float(moment)


def _new_file(temp: Path) -> BinaryIO:
    """A file that nobody had a hand in: what stands there is of a killed writer, or a stranger's link."""
    temp.unlink(missing_ok=True)
    return open(temp, "xb")


def _link_new(temp: Path, target: Path, data: bytes) -> bool:
    with _new_file(temp) as file:
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


def _move_over(temp: Path, target: Path, data: bytes) -> None:
    with _new_file(temp) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temp, target)
    _sync_folder(target.parent)


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


def is_running(process: int) -> bool:
    """Whether a process of this host is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _s3_options() -> dict[str, Any]:
    """Options of s3fs: no listing is kept, and nobody but this module asks again."""
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})  # FSSPEC_S3_CONFIG_KWARGS
    retries = {"total_max_attempts": 1, "mode": "standard"}
    return {"use_listings_cache": False, "config_kwargs": {**own, "retries": retries}}
