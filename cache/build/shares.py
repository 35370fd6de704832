"""Shares: the units that a builder is to build, all its own or those that nobody else holds.

Requests a unit, besides its objects: the lease, a look for the commit, the lease's removal. A heartbeat is one more
every HEARTBEAT_S. Where another builder was first, or nothing is free: two listings of the pass, and one small read for
each lease of another builder where only those are left.
"""

import logging
import os
import random
import secrets
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Self

from kdcache.cache.errors import KDCacheError
from kdcache.cache.build.leases import HEARTBEAT_S, LEASES, LeaseWatch, Place, SeenLease, lease_path
from kdcache.cache.storage.objects import Objects
from kdcache.cache.store.spec import canonical_json
from kdcache.cache.store.store import Store

logger = logging.getLogger(__name__)

_BEATS_UNTIL_STALE = 4
_LOOKS_A_BEAT = 3
_LEASES_LOOKED_AT = 64  # of a pass, at once: where more are held nobody has to wait


class Share(ABC):
    """The units that a builder is to build, in the order in which it gets them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.left: set[Place] = set()  # another builder's to finish: their inputs differ from those made here
        self.built: set[Place] = set()

    @abstractmethod
    def claims(self) -> Iterator[Place]:
        """Units to build, until there are none for the moment. Each is settled later, in any order."""

    def settle(self, place: Place, *, committed: bool) -> None:
        """A claimed unit is committed, or left to others."""
        (self.built if committed else self.left).add(place)

    @abstractmethod
    def wait(self, tell: Callable[[str], None]) -> bool:
        """With nothing in hand: wait until there may be claims again; False where there never will."""

    @property
    @abstractmethod
    def entries(self) -> int:
        """Entries that were not committed when this began, by whomever they will be."""

    @property
    def entries_of_others(self) -> int:
        """Of `entries`, those that other builders are known to have committed."""
        return 0


class FixedShare(Share):
    """Units that are this builder's alone."""

    def __init__(self, store: Store, places: Sequence[Place]) -> None:
        super().__init__(store)
        self._places = places

    def claims(self) -> Iterator[Place]:
        yield from self._places

    def wait(self, tell: Callable[[str], None]) -> bool:
        return False

    @property
    def entries(self) -> int:
        return _count_entries(self.store, self._places)


class LeasedShare(Share):
    """Units that nobody else holds, of some passes, pass by pass. Its leases are kept alive while it is entered."""

    def __init__(self, store: Store, missing: Sequence[Place], *, heartbeat_s: float = HEARTBEAT_S) -> None:
        super().__init__(store)
        self._missing: dict[int, set[int]] = {}  # by pass: units not committed, as last listed
        for index, unit in missing:
            self._missing.setdefault(index, set()).add(unit)
        self._entries = _count_entries(store, missing)
        self._entries_of_others = 0
        # By pass: unit and the number of its next lease.
        self._free: dict[int, deque[tuple[int, int]]] = {index: deque() for index in self._missing}
        self._next_look = dict.fromkeys(self._missing, 0.0)  # monotonic
        self._heartbeat_s = heartbeat_s
        self._watch = LeaseWatch(store.objects, heartbeat_s)
        self._held: dict[Place, int] = {}  # -> number of the lease
        self._beating = threading.Lock()  # a late heartbeat would bring back a lease that is given up
        self._builder = secrets.token_hex(8)
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="leases", daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._heart.join(timeout=1.0)
        for place in list(self._held):
            self._release(place)

    @property
    def entries(self) -> int:
        return self._entries

    @property
    def entries_of_others(self) -> int:
        return self._entries_of_others

    def claims(self) -> Iterator[Place]:
        while place := self._claim():
            yield place

    def settle(self, place: Place, *, committed: bool) -> None:
        super().settle(place, committed=committed)
        self._release(place)

    def wait(self, tell: Callable[[str], None]) -> bool:
        while True:
            for index in list(self._missing):
                self._refresh(index)
            if any(self._free.values()):
                return True
            waited_for = {(i, unit) for i, units in self._missing.items() for unit in units} - self.left
            if not waited_for:
                return False
            tell(f"waiting for {len(waited_for)} units of other builders")
            time.sleep(self._heartbeat_s / _LOOKS_A_BEAT)

    def _claim(self) -> Place | None:
        for index in list(self._missing):
            if not self._free[index] and time.monotonic() >= self._next_look[index]:
                self._refresh(index)
            while self._free[index]:
                unit, takeover = self._free[index].popleft()
                if self._take(index, unit, takeover):
                    return index, unit
                self._refresh(index)
        return None

    def _take(self, index: int, unit: int, takeover: int) -> bool:
        """Put the lease; False where another builder was first, or has finished the unit meanwhile."""
        if not self.store.objects.put_new(lease_path(index, unit, takeover), self._lease(0)):
            return False
        self._held[index, unit] = takeover
        if self.store.is_committed(index, unit):
            self._release((index, unit))
            return False
        return True

    def _refresh(self, index: int) -> None:
        """See what the others have done and hold of a pass, and finish it where nothing is missing."""
        self._next_look[index] = time.monotonic() + self._heartbeat_s / _LOOKS_A_BEAT
        leased = self._watch.newest(index)  # before the commits: a lease goes after its unit's commit
        missing = set(range(self.store.spec.units_per_pass)) - self.store.committed_units(index)
        theirs = [(index, unit) for unit in self._missing[index] - missing]
        theirs = [place for place in theirs if place not in self.built and place not in self._held]
        self._entries_of_others += _count_entries(self.store, theirs)
        if not missing:
            self._finish(index)
            return
        self._missing[index] = missing
        wanted = sorted(unit for unit in missing if not {(index, unit)} & (self.left | self._held.keys()))
        free = [(unit, 0) for unit in wanted if unit not in leased]
        if not free:
            others = {unit: leased[unit] for unit in wanted[:_LEASES_LOOKED_AT]}
            free = [
                (each.unit, each.takeover + 1)
                for each in self._watch.look(index, others)
                if self._is_stale(each)
            ]
        # Alone in order; among others from a unit chosen by chance, so that builders go on from different ones.
        start = random.randrange(len(free)) if free and leased else 0
        self._free[index] = deque(free[start:] + free[:start])

    def _is_stale(self, lease: SeenLease) -> bool:
        return lease.process_is_gone or lease.unchanged_s >= _BEATS_UNTIL_STALE * self._heartbeat_s

    def _finish(self, index: int) -> None:
        """All units are committed: the manifest, and away with the leases of builders that died."""
        self.store.finish_pass(index)
        del self._missing[index]
        self._free[index].clear()
        folder = f"{LEASES}/{index:03d}"
        for name in self.store.objects.names(folder):
            _remove(self.store.objects, f"{folder}/{name}")

    def _release(self, place: Place) -> None:
        with self._beating:
            takeover = self._held.pop(place)
        for number in range(takeover, -1, -1):  # those that were taken over stay until now: they bar the unit
            _remove(self.store.objects, lease_path(*place, number))

    def _beat(self) -> None:
        beats = 0
        while not self._stop.wait(self._heartbeat_s):
            beats += 1
            for place, takeover in list(self._held.items()):
                # The build meets the same error where it matters.
                with self._beating, suppress(KDCacheError):
                    if place in self._held:
                        self.store.objects.overwrite(lease_path(*place, takeover), self._lease(beats))

    def _lease(self, beats: int) -> bytes:
        holder = {"builder": self._builder, "host": socket.gethostname(), "process": os.getpid()}
        return canonical_json({**holder, "beats": beats})


def _remove(objects: Objects, path: str) -> None:
    try:
        objects.remove(path)
    except KDCacheError as error:  # it bars nobody: its unit is committed, or it will be stale
        logger.debug("%s", error)


def _count_entries(store: Store, places: Sequence[Place]) -> int:
    return sum(len(store.spec.unit_rows(unit)) for _, unit in places)
