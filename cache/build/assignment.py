"""Assignment: which units a builder builds, fixed from the start or claimed one by one with leases.

Requests for each unit, besides its objects: the lease, a check for a commit, and the removal of the lease; a heartbeat
is one more every HEARTBEAT_S. If another builder was first, or no unit is free: two listings of the pass; and if only
leased units are left, one small read for each of these leases.
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

from kdcache.cache.build.leases import HEARTBEAT_S, LEASES, LeaseObserver, SeenLease, UnitId, lease_path
from kdcache.cache.errors import KDCacheError
from kdcache.cache.storage.objects import Objects
from kdcache.cache.store.spec import canonical_json
from kdcache.cache.store.store import Store

logger = logging.getLogger(__name__)

_BEATS_UNTIL_STALE = 4  # one or two may be late on a busy machine; taking over too early wastes a unit's work
_CHECKS_PER_BEAT = 3
_MAX_OBSERVED_LEASES = 64  # of a pass, at once: with more leases than this some unit soon becomes free anyway


class Assignment(ABC):
    """The units that a builder builds, in the order in which it gets them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        # Left to another builder, because its inputs differ from those made here
        self.left: set[UnitId] = set()
        self.built: set[UnitId] = set()

    @abstractmethod
    def claims(self) -> Iterator[UnitId]:
        """Units to build, until none is free for the moment. For each call `finish_unit` later, in any order."""

    def finish_unit(self, unit_id: UnitId, *, committed: bool) -> None:
        """Report that a claimed unit is committed, or left to another builder."""
        (self.built if committed else self.left).add(unit_id)

    @abstractmethod
    def wait(self, show: Callable[[str], None]) -> bool:
        """When all claimed units are finished: wait until there may be new claims. False if there will be none."""

    @property
    @abstractmethod
    def entries(self) -> int:
        """Entries that were not committed at the beginning, whoever builds them."""

    @property
    def entries_of_others(self) -> int:
        """The part of `entries` that other builders are known to have committed."""
        return 0


class FixedAssignment(Assignment):
    """Units that belong to this builder alone."""

    def __init__(self, store: Store, unit_ids: Sequence[UnitId]) -> None:
        super().__init__(store)
        self._unit_ids = unit_ids

    def claims(self) -> Iterator[UnitId]:
        yield from self._unit_ids

    def wait(self, show: Callable[[str], None]) -> bool:
        return False

    @property
    def entries(self) -> int:
        return _count_entries(self.store, self._unit_ids)


class LeasedAssignment(Assignment):
    """Units of some passes that nobody else is building, pass by pass. Within `with` a thread renews its leases."""

    def __init__(self, store: Store, missing: Sequence[UnitId], *, heartbeat_s: float = HEARTBEAT_S) -> None:
        super().__init__(store)
        self._missing: dict[int, set[int]] = {}  # by pass: units without a commit at the last listing
        for index, unit in missing:
            self._missing.setdefault(index, set()).add(unit)
        self._entries = _count_entries(store, missing)
        self._entries_of_others = 0
        # By pass: units that can be claimed, each with the number that its lease will have.
        self._free: dict[int, deque[tuple[int, int]]] = {index: deque() for index in self._missing}
        self._next_refresh = dict.fromkeys(self._missing, 0.0)  # monotonic
        self._heartbeat_s = heartbeat_s
        self._observer = LeaseObserver(store.objects, heartbeat_s)
        self._leased: dict[UnitId, int] = {}  # by this builder -> number of the lease
        # Without it a late heartbeat could create a lease again that was just removed.
        self._renewing = threading.Lock()
        self._builder = secrets.token_hex(8)
        self._stop = threading.Event()
        self._heartbeat = threading.Thread(target=self._renew_leases, name="leases", daemon=True)

    def __enter__(self) -> Self:
        self._heartbeat.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._heartbeat.join(timeout=1.0)  # it may be waiting for a storage that does not answer
        for unit_id in list(self._leased):
            self._release(unit_id)

    @property
    def entries(self) -> int:
        return self._entries

    @property
    def entries_of_others(self) -> int:
        return self._entries_of_others

    def claims(self) -> Iterator[UnitId]:
        while unit_id := self._claim():
            yield unit_id

    def finish_unit(self, unit_id: UnitId, *, committed: bool) -> None:
        super().finish_unit(unit_id, committed=committed)
        self._release(unit_id)

    def wait(self, show: Callable[[str], None]) -> bool:
        while True:
            for index in list(self._missing):
                self._refresh(index)
            if any(self._free.values()):
                return True
            others = {(i, unit) for i, units in self._missing.items() for unit in units} - self.left
            if not others:
                return False
            show(f"waiting for {len(others)} unit{'s' * (len(others) > 1)} of other builders")
            time.sleep(self._heartbeat_s / _CHECKS_PER_BEAT)

    def _claim(self) -> UnitId | None:
        for index in list(self._missing):
            if not self._free[index] and time.monotonic() >= self._next_refresh[index]:
                self._refresh(index)
            while self._free[index]:
                unit, takeover = self._free[index].popleft()
                if self._take(index, unit, takeover):
                    return index, unit
                self._refresh(index)  # the list is out of date: another builder was first
        return None

    def _take(self, index: int, unit: int, takeover: int) -> bool:
        """Create the lease. False if another builder was first, or has finished the unit meanwhile."""
        if not self.store.objects.put_new(lease_path(index, unit, takeover), self._lease(0)):
            return False
        self._leased[index, unit] = takeover
        # Checked after the lease: its former owner commits, then removes its lease, and only then ours succeeds.
        if self.store.is_committed(index, unit):
            self._release((index, unit))
            return False
        return True

    def _refresh(self, index: int) -> None:
        """Find out what others have committed and leased of a pass, and finish the pass if nothing is missing."""
        self._next_refresh[index] = time.monotonic() + self._heartbeat_s / _CHECKS_PER_BEAT
        # Leases before commits: a lease is removed after its unit is committed, so no unit falls between the listings.
        leased = self._observer.newest_takeovers(index)
        missing = set(range(self.store.spec.units_per_pass)) - self.store.committed_units(index)
        theirs = [(index, unit) for unit in self._missing[index] - missing]
        theirs = [unit_id for unit_id in theirs if unit_id not in self.built and unit_id not in self._leased]
        self._entries_of_others += _count_entries(self.store, theirs)
        if not missing:
            self._finish_pass(index)
            return
        self._missing[index] = missing
        open_units = sorted(
            unit for unit in missing if not {(index, unit)} & (self.left | self._leased.keys())
        )
        free = [(unit, 0) for unit in open_units if unit not in leased]
        if not free:
            others = {unit: leased[unit] for unit in open_units[:_MAX_OBSERVED_LEASES]}
            free = [
                (each.unit, each.takeover + 1)
                for each in self._observer.observe(index, others)
                if self._is_stale(each)
            ]
        # In order if alone. Among others from a random unit on, so that builders do not compete for the same one.
        start = random.randrange(len(free)) if free and leased else 0
        self._free[index] = deque(free[start:] + free[:start])

    def _is_stale(self, lease: SeenLease) -> bool:
        return lease.process_is_gone or lease.unchanged_s >= _BEATS_UNTIL_STALE * self._heartbeat_s

    def _finish_pass(self, index: int) -> None:
        """All units are committed: write the manifest and remove the leases of builders that died."""
        self.store.finish_pass(index)
        del self._missing[index]
        self._free[index].clear()
        folder = f"{LEASES}/{index:03d}"
        for name in self.store.objects.names(folder):
            _remove(self.store.objects, f"{folder}/{name}")

    def _release(self, unit_id: UnitId) -> None:
        with self._renewing:
            takeover = self._leased.pop(unit_id)
        # Older leases were kept until now: without them another builder would start this unit with lease 0.
        for number in range(takeover, -1, -1):
            _remove(self.store.objects, lease_path(*unit_id, number))

    def _renew_leases(self) -> None:
        beats = 0
        while not self._stop.wait(self._heartbeat_s):
            beats += 1
            for unit_id, takeover in list(self._leased.items()):
                # An error of the storage is not reported here: the build itself meets it too.
                with self._renewing, suppress(KDCacheError):
                    if unit_id in self._leased:
                        self.store.objects.overwrite(lease_path(*unit_id, takeover), self._lease(beats))

    def _lease(self, beats: int) -> bytes:
        owner = {"builder": self._builder, "host": socket.gethostname(), "process": os.getpid()}
        return canonical_json({**owner, "beats": beats})


def _remove(objects: Objects, path: str) -> None:
    try:
        objects.remove(path)
    except KDCacheError as error:  # harmless: its unit is committed, or the lease becomes stale
        logger.debug("%s", error)


def _count_entries(store: Store, unit_ids: Sequence[UnitId]) -> int:
    return sum(len(store.spec.unit_rows(unit)) for _, unit in unit_ids)
