"""Watching a store grow: the progress of all its builders together, who they are, and when they will be finished."""

import time
from collections import deque
from dataclasses import dataclass

from kdcache.cache.build.leases import LeaseObserver, SeenLease
from kdcache.cache.store.store import Store

_WINDOW = 60  # the rate is taken over so many calls


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildStatus:
    """The state of a store that is being built."""

    units_done: int
    units_planned: int
    passes_complete: int
    passes_planned: int
    units_per_s: float | None  # None at the first call
    seconds_left: float | None  # None if no unit was finished since the first call
    leases: tuple[SeenLease, ...]  # of units without a commit

    @property
    def is_complete(self) -> bool:
        return 0 < self.passes_planned == self.passes_complete


class StoreWatch:
    """Watches a store. Each call lists the commits and leases of every pass that is not complete."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._leases = LeaseObserver(store.objects)
        self._counts: deque[tuple[float, int]] = deque(maxlen=_WINDOW)  # (monotonic, units done)

    def status(self) -> BuildStatus:
        """The state of the store now. Raises KDCacheError if it is unreadable."""
        store, per_pass = self._store, self._store.spec.units_per_pass
        planned, leases = range(store.goal), []
        complete = set(store.complete_passes()) & set(planned)
        done = len(complete) * per_pass
        for index in sorted(set(planned) - complete):
            # Leases before commits: a lease is removed after its unit is committed.
            newest = self._leases.newest_takeovers(index)
            committed = store.committed_units(index)
            done += len(committed)
            at_work = {
                unit: number for unit, number in newest.items() if unit < per_pass and unit not in committed
            }
            leases += self._leases.observe(index, at_work)
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
