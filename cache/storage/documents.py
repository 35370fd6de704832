"""Documents: the JSON objects of a store, read as data that a stranger may have written.

No document is parsed before its size is known to be small. Text that is not plain JSON, or that nests too deeply,
counts as damage. A builder writes each document in exactly one way, so every reader writes back what it understood and
compares the bytes. An extra field, a number of another type or a repeated key cannot slip through.
"""

import json
from typing import Any, TypeVar

from kdcache.cache.errors import KDCacheError, StoreDamagedError
from kdcache.cache.storage.objects import Objects

MAX_DOCUMENT_BYTES = 64 * 2**20  # a million image ids, or a manifest of a hundred thousand units

# What code that reads fields from a document raises if the document is malformed.
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)

_Document = TypeVar("_Document", dict[str, Any], list[Any])


def read_document(objects: Objects, path: str) -> bytes:
    """The bytes of the object. Raises FileNotFoundError, and StoreDamagedError if they exceed MAX_DOCUMENT_BYTES."""
    try:
        # One byte more than allowed shows that an object is too large, without a request for its size.
        data = objects.read_range(path, 0, MAX_DOCUMENT_BYTES + 1)
    except KDCacheError:  # S3 refuses a range of an object that is empty
        if objects.size(path):
            raise
        data = b""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise StoreDamagedError(f"{objects.url}/{path} is larger than {MAX_DOCUMENT_BYTES >> 20} MiB")
    return data


def require_document(objects: Objects, path: str) -> bytes:
    """As `read_document`, for an object that must exist. Raises StoreDamagedError if it is missing."""
    try:
        return read_document(objects, path)
    except FileNotFoundError:
        raise StoreDamagedError(
            f"{objects.url}/{path} is missing",
            hint=f"`kdcache verify {objects.url}` lists all damage, and with --repair repairs it",
        ) from None


def parse_json(data: bytes, where: str, kind: type[_Document]) -> _Document:
    """The JSON object or list in `data`. Raises StoreDamagedError, which names `where`, for anything else."""
    try:
        # Python's json accepts NaN and Infinity, which JSON does not have.
        document = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise StoreDamagedError(f"{where} is not JSON") from None
    if not isinstance(document, kind):
        raise StoreDamagedError(f"{where} is not a JSON {'object' if kind is dict else 'list'}")
    return document


def require_same_text(written: bytes, data: bytes) -> None:
    """Raises ValueError if `written`, the document as it was understood, differs from the bytes that were read."""
    if written != data:
        raise ValueError("it does not write back to the same bytes")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
