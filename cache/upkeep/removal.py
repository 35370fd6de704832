"""Removal: a store taken away whole, its spec first.

Without a spec there is no store, so one that is half removed reads as absent and not as damaged; without commits
nothing that is still there would be trusted if the store were begun again. The same removal finishes what another left.
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

RECENT_S = 600.0  # a lease or commit younger than this says that somebody is at work

_OWN = re.compile(r"kd/|passes/\d+/")
_AT_WORK = (f"{LEASES}/", "kd/passes/")
_ORDER = (SPEC, "kd/passes/", "kd/", "")  # prefixes, in the order in which they go
_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """All objects and unfinished uploads under a store's prefix, listed before they go."""

    objects: Objects
    stored: tuple[ListedObject, ...]
    uploads: tuple[Upload, ...]
    entries: int | None  # committed; None where the ledger does not say
    newest_age_s: float | None  # of the newest lease or commit, by the storage's clock

    @property
    def bytes(self) -> int:
        """Of objects, and of the parts of uploads."""
        return sum(each.size for each in self.stored) + sum(each.size for each in self.uploads)

    @property
    def is_recent(self) -> bool:
        """Whether somebody seems to be at work."""
        return self.newest_age_s is not None and self.newest_age_s < RECENT_S

    def carry_out(self, progress: Progress = silent) -> None:
        """Remove everything; progress counts objects."""
        for upload in self.uploads:  # first: nothing would lead to them once the last object is gone
            self.objects.abort(upload)
        done = 0
        for paths in self._batches():
            self.objects.remove_many(paths)
            done += len(paths)
            progress(done, len(self.stored), "")
        self.objects.remove_all()  # empty folders, and what came in meanwhile

    def _batches(self) -> Iterator[list[str]]:
        rank = {
            stored.path: next(n for n, prefix in enumerate(_ORDER) if stored.path.startswith(prefix))
            for stored in self.stored
        }
        for wanted in range(len(_ORDER)):
            paths = [path for path in rank if rank[path] == wanted]
            for start in range(0, len(paths), _AT_ONCE):
                yield paths[start : start + _AT_ONCE]


def plan_removal(url: str) -> Removal:
    """Look at the store at `url`, or what an unfinished removal or a dead build left of one.

    Raises:
        StoreNotFoundError: nothing of a store is there.
        UsageError: other things stand beside it: a home, or somebody's files.
    """
    objects = open_objects(url)
    if others := other_names(objects):
        raise UsageError(
            f"{redact(url)} is not only a store: it holds {', '.join(others[:3])}",
            hint="name one store: `kdcache ls`",
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
    """Committed entries; None for what is no readable store."""
    try:
        store = open_store(url)
        return sum(
            len(store.spec.unit_rows(unit))
            for index in store.begun_passes()
            for unit in store.committed_units(index)
        )
    except KDCacheError:
        return None
