"""Remote objects: behind any file system of fsspec, which creates an object by looking whether one stands, then writing.

Whatever a remote storage does for a moment, 500, 503, timeouts, resets, bodies cut short, is waited out here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeVar

from fsspec.core import url_to_fs

from kdcache.cache.errors import KDCacheError, UsageError
from kdcache.cache.storage.objects import ByteRange, Objects, Stored, failure, reading
from kdcache.cache.storage.patience import Patience, is_transient, refusal_code, try_again
from kdcache.cache.storage.urls import redact

_Result = TypeVar("_Result")


class RemoteObjects(Objects):
    """Objects behind any fsspec file system; endpoint and credentials come the way its users set them."""

    patience = Patience()
    creates_once = False
    _put_options: Mapping[str, Any] = MappingProxyType({})  # of the file system's `pipe_file`

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """`options` are the file system's. Raises UsageError for a scheme that nobody here knows."""
        self.url = redact(url)
        try:
            self.fs, self.prefix = url_to_fs(url, **(options or {}))
        except ImportError as error:
            raise UsageError(
                f"{self.url}: {error}", hint="pip install 'kdcache[s3]' for s3:// URLs"
            ) from None
        except ValueError as error:
            raise UsageError(
                f"{self.url}: {error}",
                hint="a local path, s3://, gs://, memory:// or another scheme of fsspec",
            ) from None
        self._answered = self._hurries = False

    def get(self, path: str) -> bytes:
        with reading(self.url, path):
            return bytes(self._ask(lambda: self.fs.cat_file(self._full(path))))

    def put_new(self, path: str, data: bytes) -> bool:
        def put() -> bool:
            if not self.creates_once and self._info(path) is not None:
                return False
            mode = "create" if self.creates_once else "overwrite"
            self.fs.pipe_file(self._full(path), data, mode=mode, **self._put_options)
            return True

        with self._changing("write", path):
            try:
                return self._ask(put)
            except Exception as error:  # every file system has errors of its own
                if not was_refused(error):
                    raise
        return self._holds(path, data)  # a retry after a lost reply meets its own object

    def _holds(self, path: str, data: bytes) -> bool:
        """Whether the object that stands has these bytes; after a refused put they decide whose it is."""
        try:
            return self.get(path) == data
        except FileNotFoundError:  # a lease, which its holder has removed meanwhile
            return False

    def replace(self, path: str, data: bytes) -> None:
        self.overwrite(path, data)

    def overwrite(self, path: str, data: bytes) -> None:
        with self._changing("write", path):
            self._ask(lambda: self.fs.pipe_file(self._full(path), data, **self._put_options))

    def remove(self, path: str) -> None:
        with self._changing("remove", path), suppress(FileNotFoundError):
            self._ask(lambda: self.fs.rm_file(self._full(path)))

    def remove_all(self) -> None:
        with self._changing("remove"), suppress(FileNotFoundError):
            self._ask(lambda: self.fs.rm(self.prefix, recursive=True))

    def remove_leftovers(self) -> None:
        """Nothing to do: an object appears whole or not at all."""

    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        found: dict[int, bytes | Exception] = {}

        def read() -> None:
            missing = [n for n in range(len(ranges)) if isinstance(found.get(n, OSError()), Exception)]
            asked = [ranges[n] for n in missing]
            paths = [self._full(each.path) for each in asked]
            starts = [each.start for each in asked]
            ends = [each.start + each.length for each in asked]
            # At once, where the file system can: S3 can, one round trip for all.
            answers = self.fs.cat_ranges(paths, starts, ends, on_error="return")
            found.update(zip(missing, answers, strict=True))
            for answer in answers:
                if isinstance(answer, Exception) and is_transient(answer):
                    raise answer

        with reading(self.url, ranges[0].path if ranges else ""):
            self._ask(read)
        return [self._whole_or_raise(each.path, found[n]) for n, each in enumerate(ranges)]

    def _whole_or_raise(self, path: str, data: bytes | Exception) -> bytes:
        with reading(self.url, path):
            if isinstance(data, Exception):
                raise data
        return bytes(data)

    def size(self, path: str) -> int:
        with reading(self.url, path):
            return int(self._ask(lambda: self.fs.size(self._full(path))))

    def names(self, folder: str) -> list[str]:
        full = self._full(folder)
        try:
            with reading(self.url, folder):
                found = [str(name).rstrip("/") for name in self._ask(lambda: self.fs.ls(full, detail=False))]
        except FileNotFoundError:
            return []
        # Some clients put an object for a folder itself; a listing has it too.
        return sorted(name.rsplit("/", 1)[-1] for name in found if name.strip("/") != full.strip("/"))

    def walk(self, folder: str) -> list[Stored]:
        full = self._full(folder)
        try:
            with reading(self.url, folder):
                found = self._ask(lambda: self.fs.find(full, detail=True)).values()
                return sorted(
                    Stored(
                        str(info["name"])[len(self.prefix) + 1 :], int(info["size"]), self._modified_s(info)
                    )
                    for info in found
                    if str(info["name"]).startswith(f"{full}/")
                )
        except FileNotFoundError:
            return []

    def _modified_s(self, info: Mapping[str, Any]) -> float:
        """When an object was put: file systems have names of their own for it."""
        for name in ("LastModified", "mtime", "created"):
            if info.get(name) is not None:
                return seconds(info[name])
        return seconds(self._ask(lambda: self.fs.modified(info["name"])))

    def free_bytes(self) -> int | None:
        return None

    def hurry(self) -> None:
        self._hurries = True

    def _info(self, path: str) -> Mapping[str, Any] | None:
        """What the file system says of an object; None where none stands. In one try, for use within `ask`."""
        try:
            found: Mapping[str, Any] = self.fs.info(self._full(path))
        except FileNotFoundError:
            return None
        return found

    def _ask(self, request: Callable[[], _Result]) -> _Result:
        """What a request of the file system returns, asked again while its errors pass."""
        result = try_again(request, self._limit_s, pauses=self.patience, where=self.url)
        self._answered = True
        return result

    def _limit_s(self) -> float:
        if self._hurries:
            return 0.0
        return self.patience.later_s if self._answered else self.patience.first_s

    def _full(self, path: str) -> str:
        """The file system's own name of an object or a folder."""
        return f"{self.prefix}/{path}" if path else str(self.prefix)

    @contextmanager
    def _changing(self, what: str, path: str = "") -> Iterator[None]:
        """KDCacheError for every error of the block, which does `what` (a verb) to the object."""
        try:
            yield
        except KDCacheError:
            raise
        except Exception as error:  # every file system has errors of its own
            raise failure(what, f"{self.url}/{path}", error) from error


def was_refused(error: Exception) -> bool:
    """Whether a put was refused for what stands at its place."""
    return isinstance(error, FileExistsError) or refusal_code(error) == "PreconditionFailed"


def seconds(moment: datetime | float) -> float:
    """Seconds since 1970."""
    return moment.timestamp() if isinstance(moment, datetime) else float(moment)
