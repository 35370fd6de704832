"""Watching a store grow: how far all its builders together are, who they are, and when it will be finished."""

import time
from collections import deque
from dataclasses import dataclass

from kdcache.cache.build.leases import LeaseWatch, SeenLease
from kdcache.cache.store.store import Store

_WINDOW = 60  # looks over which the rate is taken


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildStatus:
    """One look at a store."""

    units_done: int
    units_planned: int
    passes_complete: int
    passes_planned: int
    units_per_s: float | None  # None on the first look
    seconds_left: float | None  # None where nothing was finished since the first look
    leases: tuple[SeenLease, ...]  # of units that are not committed

    @property
    def is_complete(self) -> bool:
        return 0 < self.passes_planned == self.passes_complete


class StoreWatch:
    """Successive looks at a store. A look lists the commits and leases of every pass that is not complete."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._leases = LeaseWatch(store.objects)
        self._counts: deque[tuple[float, int]] = deque(maxlen=_WINDOW)  # (monotonic, units done)

    def look(self) -> BuildStatus:
        """How the store stands now. Raises KDCacheError where it cannot be read."""
        store, per_pass = self._store, self._store.spec.units_per_pass
        planned, leases = range(store.goal), []
        complete = set(store.complete_passes()) & set(planned)
        done = len(complete) * per_pass
        for index in sorted(set(planned) - complete):
            newest = self._leases.newest(index)  # before the commits: a lease goes after its unit's commit
            committed = store.committed_units(index)
            done += len(committed)
            held = {
                unit: number for unit, number in newest.items() if unit < per_pass and unit not in committed
            }
            leases += self._leases.look(index, held)
        self._counts.append((time.monotonic(), done))
        rate, left = self._units_per_s(), len(planned) * per_pass - done
        return BuildStatus(
            units_done=done,
            units_planned=len(planned) * per_pass,
            passes_complete=len(complete),
            passes_planned=len(planned),
            units_per_s=rate,
            seconds_left=left / rate if rate else None,
            leases=tuple(leases),
        )

    def _units_per_s(self) -> float | None:
        (then, before), (now, done) = self._counts[0], self._counts[-1]
        return (done - before) / (now - then) if now > then else None
