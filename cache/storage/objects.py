"""Objects: named bytes under a prefix, created once and never changed. The only door to storage.

A local or NFS folder gets the guarantee from temp file + fsync + hard link (local.py), S3 from conditional puts
(s3.py). Any other file system that fsspec knows is for one builder at a time (remote.py).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from kdcache.cache.errors import KDCacheError
from kdcache.cache.storage.patience import concerns_credentials
from kdcache.cache.storage.urls import redact


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

    def remove_many(self, paths: Sequence[str]) -> None:
        """Delete objects; one that is not there is no error. For what nothing refers to any more."""
        for path in paths:
            self.remove(path)

    @abstractmethod
    def remove_all(self) -> None:
        """Delete all objects and the prefix itself: for what nothing refers to."""

    @abstractmethod
    def remove_leftovers(self) -> None:
        """Delete what killed writers of this host left half-written; objects are never touched."""

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

    def uploads(self) -> list[Upload]:
        """Unfinished multipart uploads under the prefix, where the storage knows such a thing."""
        return []

    def abort(self, upload: Upload) -> None:
        """Drop one of `uploads` with its parts; one that is gone is no error."""
        raise KDCacheError(f"{self.url} has no uploads, so not that of {upload.path}")

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


def sha256(data: bytes) -> str:
    """Hex digest, the form in which the ledger names objects."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def reading(url: str, path: str) -> Iterator[None]:
    """FileNotFoundError for what is not there, KDCacheError for what cannot be reached."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{url}/{path}") from None
    except KDCacheError:
        raise
    except Exception as error:  # every file system has errors of its own
        raise failure("read", f"{url}/{path}", error) from error


def failure(what: str, where: str, error: Exception, *, hint: str | None = None) -> KDCacheError:
    """What could not be done (a verb) where (a path or a redacted URL), and why."""
    if "://" in where and concerns_credentials(error):
        hint = _CREDENTIALS_HINT
    return KDCacheError(f"cannot {what} {where.rstrip('/')}: {_reason(error)}", hint=hint)


_CREDENTIALS_HINT = (
    "check the credentials and what they allow (AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN, the clock); nothing "
    "is lost, and the same command goes on from here"
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
        """The inverse of to_dict. Raises one of documents.MALFORMED for what is no record."""
        size, digest = int(fields["size"]), str(fields["sha256"])
        if not 0 <= size < 2**63 or len(digest) != 64 or bytes.fromhex(digest).hex() != digest:
            raise ValueError(f"object of {size} bytes with digest {digest[:70]!r}")
        return cls(size, digest)

    def to_dict(self) -> dict[str, Any]:
        """JSON values by field."""
        return {"size": self.size, "sha256": self.sha256}
