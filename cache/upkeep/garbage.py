"""Garbage: what dead builders, probes and copies leave beside a store, found and removed once it is old.

Garbage is only leases, probes, temporary files and unfinished uploads. An object with a unit's path is never garbage: a
builder may be about to commit it. Ages are measured with the storage's clock, never with this machine's.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from kdcache.cache.build.leases import LEASES
from kdcache.cache.errors import KDCacheError, StoreNotFoundError
from kdcache.cache.storage.local import TEMP_FOLDER
from kdcache.cache.storage.objects import ListedObject, Objects, Upload
from kdcache.cache.storage.opening import PROBE_PREFIX, PROBES, open_objects, storage_time_s
from kdcache.cache.storage.urls import redact
from kdcache.cache.store.store import SPEC

logger = logging.getLogger(__name__)

KINDS = {LEASES: "lease", PROBES: "probe", TEMP_FOLDER: "temporary file"}  # by folder of a store
UPLOAD = "unfinished upload"


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Something that nobody needs."""

    kind: str
    found: ListedObject | Upload  # its path is relative to the URL that was searched
    age_s: float

    @property
    def path(self) -> str:
        return self.found.path

    @property
    def size(self) -> int:
        """Bytes."""
        return self.found.size


def find_garbage(url: str, grace_s: float) -> list[Garbage]:
    """Garbage that is older than `grace_s` seconds, in a store or in all stores of a home.

    Raises:
        StoreNotFoundError: there is nothing at `url`.
    """
    objects = open_objects(url)
    names_by_prefix = {"": objects.names("")}
    if not names_by_prefix[""]:
        raise StoreNotFoundError(
            f"there is nothing at {redact(url)}", hint="`kdcache ls` lists the stores of the home"
        )
    if not _is_store(objects, "", names_by_prefix[""]):
        names_by_prefix |= {f"{name}/": objects.names(name) for name in names_by_prefix[""]}
    stores = tuple(prefix for prefix, names in names_by_prefix.items() if _is_store(objects, prefix, names))
    candidates: list[tuple[str, ListedObject | Upload]] = [
        ("probe", stored)
        for prefix, names in names_by_prefix.items()
        for name in names
        if name.startswith(PROBE_PREFIX)
        for stored in objects.walk(f"{prefix}{name}")
    ]
    candidates += [
        (kind, stored)
        for prefix in stores
        for folder, kind in KINDS.items()
        for stored in objects.walk(f"{prefix}{folder}")
    ]
    candidates += [(UPLOAD, each) for each in unfinished_uploads(objects) if each.path.startswith(stores)]
    now_s = storage_time_s(url) if candidates else 0.0
    found = [Garbage(kind=kind, found=each, age_s=now_s - _since(each)) for kind, each in candidates]
    return [garbage for garbage in found if garbage.age_s > grace_s]


def remove_garbage(url: str, garbage: Sequence[Garbage]) -> None:
    """Remove what `find_garbage` found at `url`, if it still exists."""
    objects = open_objects(url)
    objects.remove_many([each.path for each in garbage if isinstance(each.found, ListedObject)])
    for each in garbage:
        if isinstance(each.found, Upload):
            objects.abort(each.found)


def unfinished_uploads(objects: Objects) -> list[Upload]:
    """The unfinished uploads; an empty list and a warning if listing them fails."""
    try:
        return objects.uploads()
    except KDCacheError as error:  # not every server supports this, and not every user may ask
        logger.warning("unfinished uploads are not listed: %s", error)
        return []


def _is_store(objects: Objects, prefix: str, top: Sequence[str]) -> bool:
    folder, _, name = SPEC.rpartition("/")
    return folder in top and name in objects.names(f"{prefix}{folder}")


def _since(found: ListedObject | Upload) -> float:
    return found.begun_s if isinstance(found, Upload) else found.modified_s
