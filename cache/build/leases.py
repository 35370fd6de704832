"""Leases: which units other builders are working on. They save work and never decide anything.

    kd/leases/000/000012-0     unit 12 of pass 0 is being built; -1 after another builder has taken it over

A lease is created once. Its owner overwrites it every few seconds, with a growing counter. If an observer sees it
unchanged for long, by the observer's own clock, it takes the unit over: it creates the lease of the next number, which
only one of many observers can. Whatever goes wrong, two builders of one unit end with one committed result; a lost,
truncated or stolen lease only costs time.
"""

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from kdcache.cache.storage.objects import Objects
from kdcache.cache.storage.writers import has_ended

UnitId = tuple[int, int]  # pass, unit

LEASES = "kd/leases"
HEARTBEAT_S = 15.0  # one small request for each builder; a dead builder's unit is idle for four of these
_NAME = re.compile(r"(\d{6,12})-(\d{1,3})")


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenLease:
    """A unit's newest lease, as one observer has seen it so far. Host and process are what its owner wrote."""

    pass_index: int
    unit: int
    takeover: int
    host: str
    process: int
    seen_s: float  # seconds since this observer saw it first
    unchanged_s: float  # seconds of these without a heartbeat

    @property
    def process_is_gone(self) -> bool:
        """True if it was a process of this host that has ended."""
        return has_ended(self.host, self.process)


@dataclass(slots=True)
class _Observation:
    data: bytes
    first_at: float  # monotonic
    last_at: float
    unchanged_s: float = 0.0


class LeaseObserver:
    """Observes leases. It uses only changes between observations, never a time that someone wrote: clocks differ."""

    def __init__(self, objects: Objects, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._objects = objects
        self._heartbeat_s = heartbeat_s
        self._observations: dict[str, _Observation] = {}

    def newest_takeovers(self, pass_index: int) -> dict[int, int]:
        """For each leased unit of a pass the number of takeovers of its newest lease; costs one listing."""
        newest: dict[int, int] = {}
        for name in self._objects.names(f"{LEASES}/{pass_index:03d}"):
            if match := _NAME.fullmatch(name):
                unit, takeover = int(match[1]), int(match[2])
                newest[unit] = max(takeover, newest.get(unit, 0))
        return newest

    def observe(self, pass_index: int, leases: Mapping[int, int]) -> list[SeenLease]:
        """Read these leases, unit -> takeovers, with one small read each. Leases that no longer exist are left out."""
        seen = [self._observe(pass_index, unit, takeover) for unit, takeover in sorted(leases.items())]
        return [lease for lease in seen if lease is not None]

    def _observe(self, pass_index: int, unit: int, takeover: int) -> SeenLease | None:
        path = lease_path(pass_index, unit, takeover)
        try:
            # Not read_range, which keeps files open: a lease is replaced all the time
            data = self._objects.get(path)
        except FileNotFoundError:
            self._observations.pop(path, None)
            return None
        now = time.monotonic()
        last = self._observations.setdefault(path, _Observation(data, now, now))
        # A long time between two observations, as in an outage of the storage, counts as one heartbeat: the owner could
        # not renew its lease either.
        same = last.data == data
        last.unchanged_s = last.unchanged_s + min(now - last.last_at, self._heartbeat_s) if same else 0.0
        last.data, last.last_at = data, now
        host, process = _read_owner(data)
        return SeenLease(
            pass_index=pass_index,
            unit=unit,
            takeover=takeover,
            host=host,
            process=process,
            seen_s=now - last.first_at,
            unchanged_s=last.unchanged_s,
        )


def lease_path(pass_index: int, unit: int, takeover: int) -> str:
    """Path of the lease of a unit after so many takeovers."""
    return f"{LEASES}/{pass_index:03d}/{unit:06d}-{takeover}"


def count_leases(objects: Objects) -> int:
    """The number of leases, of working and of dead builders."""
    return sum(len(objects.names(f"{LEASES}/{folder}")) for folder in objects.names(LEASES))


def _read_owner(data: bytes) -> tuple[str, int]:
    """Host and process of a lease's owner, ("?", 0) if it is damaged. Anybody may have written it, so it is checked."""
    with suppress(ValueError, TypeError, KeyError):
        fields = json.loads(data)
        host, process = fields["host"], fields["process"]
        if isinstance(host, str) and host.isprintable() and type(process) is int and 0 < process < 2**31:
            return host[:64], process
    return "?", 0
