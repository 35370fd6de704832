"""Documents: the JSON objects of a store, read as what they are: data that a stranger may have written.

Nothing is taken in before its size is known to be small; what is not plain JSON, or nests without end, is damage. What
a builder wrote has one text, so every reader also writes back what it understood and compares: a field too many, a
number of another type or a key that stands twice cannot hide.
"""

import json
from typing import Any, TypeVar

from kdcache.cache.errors import KDCacheError, StoreDamagedError
from kdcache.cache.storage.objects import Objects

MAX_DOCUMENT_BYTES = 64 * 2**20  # a million image ids, or a manifest of a hundred thousand units

# What taking a document apart raises where it is not what it should be.
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)

_Document = TypeVar("_Document", dict[str, Any], list[Any])


def read_document(objects: Objects, path: str) -> bytes:
    """The object's bytes. Raises FileNotFoundError, and StoreDamagedError for more than MAX_DOCUMENT_BYTES of them."""
    try:
        data = objects.read_range(path, 0, MAX_DOCUMENT_BYTES + 1)
    except KDCacheError:  # S3 refuses a range of an object that is empty
        if objects.size(path):
            raise
        data = b""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise StoreDamagedError(f"{objects.url}/{path} is larger than {MAX_DOCUMENT_BYTES >> 20} MiB")
    return data


def require_document(objects: Objects, path: str) -> bytes:
    """`read_document` of what something else depends on: StoreDamagedError where it is missing."""
    try:
        return read_document(objects, path)
    except FileNotFoundError:
        raise StoreDamagedError(
            f"{objects.url}/{path} is missing", hint="kdcache verify says what else is, and --repair mends it"
        ) from None


def parse_json(data: bytes, where: str, kind: type[_Document]) -> _Document:
    """A JSON object or list. Raises StoreDamagedError, naming `where`, for anything else."""
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise StoreDamagedError(f"{where} is not JSON") from None
    if not isinstance(document, kind):
        raise StoreDamagedError(f"{where} is not a JSON {'object' if kind is dict else 'list'}")
    return document


def require_same_text(written: bytes, data: bytes) -> None:
    """Raises ValueError where what was understood of a document does not write back to its bytes."""
    if written != data:
        raise ValueError("it does not write back to the same bytes")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
