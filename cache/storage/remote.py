"""Remote objects, behind any file system of fsspec. An object is created by looking whether it exists, then writing.

Transient failures of a remote storage (500, 503, timeouts, resets, truncated bodies) are retried here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeVar

from fsspec.core import url_to_fs

from kdcache.cache.errors import KDCacheError, UsageError
from kdcache.cache.storage.objects import ByteRange, ListedObject, Objects, failure, reading
from kdcache.cache.storage.retries import RetryPolicy, is_transient, refusal_code, retry
from kdcache.cache.storage.urls import redact

_Result = TypeVar("_Result")


class RemoteObjects(Objects):
    """Objects behind any fsspec file system. Endpoint and credentials come from that file system's usual settings."""

    retry_policy = RetryPolicy()
    creates_once = False
    _put_options: Mapping[str, Any] = MappingProxyType({})  # more arguments for the file system's `pipe_file`

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """`options` go to the file system. Raises UsageError for an unknown scheme."""
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
        self._answered = self._gives_up = False

    def get(self, path: str) -> bytes:
        with reading(self.url, path):
            return bytes(self._ask(lambda: self.fs.cat_file(self._full(path))))

    def put_new(self, path: str, data: bytes) -> bool:
        def put() -> bool:
            # Look and write are two requests: another builder may write in between. Hence `creates_once` is False.
            if not self.creates_once and self._info(path) is not None:
                return False
            mode = "create" if self.creates_once else "overwrite"
            self.fs.pipe_file(self._full(path), data, mode=mode, **self._put_options)
            return True

        with self._changing("write", path):
            try:
                return self._ask(put)
            except Exception as error:  # every file system of fsspec has its own error types
                if not was_refused(error):
                    raise
        # After a lost reply the retry is refused because of the object that the first attempt created.
        return self._has_bytes(path, data)

    def _has_bytes(self, path: str, data: bytes) -> bool:
        """True if the existing object has these bytes. After a refused put that tells whether it is our own."""
        try:
            return self.get(path) == data
        except FileNotFoundError:  # it was a lease, and its owner has removed it since
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
        """Nothing to do: an object appears complete or not at all."""

    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        found: dict[int, bytes | Exception] = {}

        def read() -> None:
            # A retry asks only for the ranges that failed; those that arrived are kept.
            missing = [n for n in range(len(ranges)) if isinstance(found.get(n, OSError()), Exception)]
            asked = [ranges[n] for n in missing]
            paths = [self._full(each.path) for each in asked]
            starts = [each.start for each in asked]
            ends = [each.start + each.length for each in asked]
            # All at once: on S3 their round trips overlap.
            contents = self.fs.cat_ranges(paths, starts, ends, on_error="return")
            found.update(zip(missing, contents, strict=True))
            for content in contents:
                if isinstance(content, Exception) and is_transient(content):
                    raise content

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
        # Some clients create an object for a folder itself, and then it is in the folder's listing.
        return sorted(name.rsplit("/", 1)[-1] for name in found if name.strip("/") != full.strip("/"))

    def walk(self, folder: str) -> list[ListedObject]:
        full = self._full(folder)
        try:
            with reading(self.url, folder):
                found = self._ask(lambda: self.fs.find(full, detail=True)).values()
                return sorted(
                    ListedObject(
                        str(info["name"])[len(self.prefix) + 1 :], int(info["size"]), self._modified_s(info)
                    )
                    for info in found
                    if str(info["name"]).startswith(f"{full}/")
                )
        except FileNotFoundError:
            return []

    def _modified_s(self, info: Mapping[str, Any]) -> float:
        """When an object was written, in seconds since 1970. Each file system has another name for it."""
        for name in ("LastModified", "mtime", "created"):
            if info.get(name) is not None:
                return seconds(info[name])
        return seconds(self._ask(lambda: self.fs.modified(info["name"])))

    def free_bytes(self) -> int | None:
        return None

    def stop_retrying(self) -> None:
        self._gives_up = True

    def _info(self, path: str) -> Mapping[str, Any] | None:
        """What the file system knows about an object; None if it does not exist. Call it in `_ask`, which retries."""
        try:
            found: Mapping[str, Any] = self.fs.info(self._full(path))
        except FileNotFoundError:
            return None
        return found

    def _ask(self, request: Callable[[], _Result]) -> _Result:
        """What a request to the file system returns, retried while its errors are transient."""
        result = retry(request, self._limit_s, policy=self.retry_policy, where=self.url)
        self._answered = True
        return result

    def _limit_s(self) -> float:
        if self._gives_up:
            return 0.0
        return self.retry_policy.later_s if self._answered else self.retry_policy.first_s

    def _full(self, path: str) -> str:
        """The file system's own name for an object or a folder."""
        return f"{self.prefix}/{path}" if path else str(self.prefix)

    @contextmanager
    def _changing(self, what: str, path: str = "") -> Iterator[None]:
        """Errors in the block, which does `what` (a verb) to the object, become KDCacheError."""
        try:
            yield
        except KDCacheError:
            raise
        except Exception as error:  # every file system of fsspec has its own error types
            raise failure(what, f"{self.url}/{path}", error) from error


def was_refused(error: Exception) -> bool:
    """True if a put was refused because an object of that name exists."""
    return isinstance(error, FileExistsError) or refusal_code(error) == "PreconditionFailed"


def seconds(moment: datetime | float) -> float:
    """Seconds since 1970."""
    return moment.timestamp() if isinstance(moment, datetime) else float(moment)
