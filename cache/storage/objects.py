"""Objects: named bytes under a prefix, created once and never changed. All access to storage goes through them.

A local or NFS folder gets this guarantee from temporary file + fsync + hard link (local.py), S3 from conditional puts
(s3.py). Any other file system that fsspec knows allows one builder at a time (remote.py).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from kdcache.cache.errors import KDCacheError
from kdcache.cache.storage.retries import concerns_credentials
from kdcache.cache.storage.urls import redact


class ByteRange(NamedTuple):
    """`length` bytes of an object, from byte `start`."""

    path: str
    start: int
    length: int


class ListedObject(NamedTuple):
    """An object as a listing describes it."""

    path: str
    size: int  # bytes
    modified_s: float  # seconds since 1970, by the clock of the storage


class Upload(NamedTuple):
    """A multipart upload that was started and neither completed nor aborted."""

    path: str
    id: str
    size: int  # bytes of the parts that arrived
    begun_s: float  # seconds since 1970, by the clock of the storage


class Objects(ABC):
    """Objects under one prefix, addressed by relative paths with forward slashes.

    Any other failure, such as a missing permission or network, is a KDCacheError that names the object.
    """

    url: str
    creates_once: bool  # True: of many writers of one object exactly one wins. False: one builder at a time

    @abstractmethod
    def get(self, path: str) -> bytes:
        """The whole object. Raises FileNotFoundError."""

    @abstractmethod
    def put_new(self, path: str, data: bytes) -> bool:
        """Create the object atomically. False if one exists already; then nothing changes."""

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Overwrite the object, and keep the new bytes through a power failure. Only for repairs, while nobody builds.

        Raises KDCacheError if another process changed it at the same moment.
        """

    @abstractmethod
    def overwrite(self, path: str, data: bytes) -> None:
        """Write the object, existing or not. A crash of the machine may lose it. Only for leases."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Delete the object if it exists."""

    def remove_many(self, paths: Sequence[str]) -> None:
        """Delete those of the objects that exist. Only for objects that nothing refers to any more."""
        for path in paths:
            self.remove(path)

    @abstractmethod
    def remove_all(self) -> None:
        """Delete all objects and the prefix itself. Only for what nothing refers to."""

    @abstractmethod
    def remove_leftovers(self) -> None:
        """Delete half-written files of killed writers of this host. Objects are never touched."""

    @abstractmethod
    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """The bytes of every range, fewer at the end of an object. Requests overlap as far as the storage allows.

        Raises FileNotFoundError, which names the object.
        """

    @abstractmethod
    def size(self, path: str) -> int:
        """Bytes of the object. Raises FileNotFoundError."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Sorted names of the objects and folders directly in `folder`; an empty list if it does not exist."""

    @abstractmethod
    def walk(self, folder: str) -> list[ListedObject]:
        """All objects in `folder` and below, sorted by path. A bucket needs one request for every 1,000."""

    def uploads(self) -> list[Upload]:
        """Unfinished multipart uploads under the prefix; an empty list if the storage does not have uploads."""
        return []

    def abort(self, upload: Upload) -> None:
        """Drop one of `uploads` with its parts, if it still exists."""
        raise KDCacheError(
            f"{self.url} does not support multipart uploads: cannot abort that of {upload.path}"
        )

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Bytes that still fit; None if the storage does not say, as buckets do not."""

    @abstractmethod
    def stop_retrying(self) -> None:
        """From now on fail at the first error instead of retrying: for a process that was asked to end."""

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer at the end of the object. Raises FileNotFoundError."""
        return self.read_ranges([ByteRange(path, start, length)])[0]

    def put_same(self, path: str, data: bytes) -> bytes:
        """Create the object, or keep the one that exists. Returns the bytes that are stored now."""
        return data if self.put_new(path, data) else self.get(path)


def sha256(data: bytes) -> str:
    """The hex digest, in the form in which the ledger identifies objects."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def reading(url: str, path: str) -> Iterator[None]:
    """Errors in the block become FileNotFoundError (it does not exist) or KDCacheError (it could not be read)."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{url}/{path}") from None
    except KDCacheError:
        raise
    except Exception as error:  # every file system of fsspec has its own error types
        raise failure("read", f"{url}/{path}", error) from error


def failure(what: str, where: str, error: Exception, *, hint: str | None = None) -> KDCacheError:
    """The error for something (`what`, a verb) that failed at `where` (a path or a redacted URL)."""
    if "://" in where and concerns_credentials(error):
        hint = _CREDENTIALS_HINT
    return KDCacheError(f"cannot {what} {where.rstrip('/')}: {_reason(error)}", hint=hint)


_CREDENTIALS_HINT = (
    "check the credentials and their permissions (AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN, the clock), then "
    "run the same command again: nothing is lost, and it continues from here"
)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return redact(" ".join(str(error).split()) or type(error).__name__)


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """Size in bytes and sha256 (hex) of one stored object."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "ObjectRecord":
        """The record of an object with these bytes."""
        return cls(len(data), sha256(data))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ObjectRecord":
        """The inverse of to_dict. Raises one of documents.MALFORMED for a malformed record."""
        size, digest = int(fields["size"]), str(fields["sha256"])
        # bytes.fromhex accepts capitals and spaces, so the digest is compared with its one canonical form.
        if not 0 <= size < 2**63 or len(digest) != 64 or bytes.fromhex(digest).hex() != digest:
            raise ValueError(f"an object of {size} bytes with digest {digest[:70]!r}")
        return cls(size, digest)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {"size": self.size, "sha256": self.sha256}
