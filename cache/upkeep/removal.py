"""Removal: a whole store is deleted, its spec first.

A store exists only with its spec, so a half-removed one counts as absent and not as damaged. The commits go next:
without them nothing that remains would be trusted if a store were created there again. Another removal finishes an
interrupted one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from kdcache.cache.build.leases import LEASES
from kdcache.cache.errors import KDCacheError, StoreNotFoundError, UsageError
from kdcache.cache.progress import Progress, silent
from kdcache.cache.storage.objects import ListedObject, Objects, Upload
from kdcache.cache.storage.opening import open_objects, storage_time_s
from kdcache.cache.storage.urls import redact
from kdcache.cache.store.opening import open_store, other_names
from kdcache.cache.store.store import SPEC
from kdcache.cache.upkeep.garbage import unfinished_uploads

RECENT_S = 600.0  # a lease or commit younger than this means that a builder may be working

_OWN = re.compile(r"kd/|passes/\d+/")
_AT_WORK = (f"{LEASES}/", "kd/passes/")
_ORDER = (SPEC, "kd/passes/", "kd/", "")  # prefixes, in the order in which they are deleted
_AT_ONCE = 1000  # between two reports of progress; also what S3 deletes with one request


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """All objects and unfinished uploads under a store's prefix, listed before they are deleted."""

    objects: Objects
    stored: tuple[ListedObject, ...]
    uploads: tuple[Upload, ...]
    entries: int | None  # committed entries; None if the ledger is unreadable
    newest_age_s: float | None  # age of the newest lease or commit, by the storage's clock

    @property
    def bytes(self) -> int:
        """Bytes of the objects, and of the parts of unfinished uploads."""
        return sum(each.size for each in self.stored) + sum(each.size for each in self.uploads)

    @property
    def is_recent(self) -> bool:
        """True if somebody may be building."""
        return self.newest_age_s is not None and self.newest_age_s < RECENT_S

    def carry_out(self, progress: Progress = silent) -> None:
        """Delete everything; `progress` counts objects."""
        for upload in self.uploads:  # first: without any object nobody would look for uploads here
            self.objects.abort(upload)
        done = 0
        for paths in self._batches():
            self.objects.remove_many(paths)
            done += len(paths)
            progress(done, len(self.stored), "")
        self.objects.remove_all()  # empty folders, and objects that were added meanwhile

    def _batches(self) -> Iterator[list[str]]:
        rank = {
            stored.path: next(n for n, prefix in enumerate(_ORDER) if stored.path.startswith(prefix))
            for stored in self.stored
        }
        for number in range(len(_ORDER)):
            paths = [path for path in rank if rank[path] == number]
            for start in range(0, len(paths), _AT_ONCE):
                yield paths[start : start + _AT_ONCE]


def plan_removal(url: str) -> Removal:
    """List the store at `url`, or what an unfinished removal or a dead build left of one.

    Raises:
        StoreNotFoundError: there is nothing of a store.
        UsageError: there are other things too: it is a home, or contains somebody's files.
    """
    objects = open_objects(url)
    if others := other_names(objects):
        raise UsageError(
            f"{redact(url)} is not only a store: it contains {', '.join(others[:3])}",
            hint="name a single store; `kdcache ls` lists them",
        )
    stored = tuple(objects.walk(""))
    if not any(_OWN.match(each.path) for each in stored):
        raise StoreNotFoundError(
            f"no store at {redact(url)}", hint="`kdcache ls` lists the stores of the home"
        )
    newest = max((each.modified_s for each in stored if each.path.startswith(_AT_WORK)), default=None)
    return Removal(
        objects=objects,
        stored=stored,
        uploads=tuple(unfinished_uploads(objects)),
        entries=_entries(url),
        newest_age_s=None if newest is None else storage_time_s(url) - newest,
    )


def _entries(url: str) -> int | None:
    """The number of committed entries; None if the store is unreadable."""
    try:
        store = open_store(url)
        return sum(
            len(store.spec.unit_rows(unit))
            for index in store.begun_passes()
            for unit in store.committed_units(index)
        )
    except KDCacheError:
        return None
