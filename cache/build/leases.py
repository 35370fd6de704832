"""Leases: which units other builders are at. They save work and never decide anything.

    kd/leases/000/000012-0     unit 12 of pass 0 is being built; -1 once another builder has taken it over

A lease is put once and then replaced by its holder every few seconds, with a counter that grows. One that an observer
has seen unchanged for long, by the observer's own clock, is taken over: the next number is put, once, so that of many
observers one does. Whatever goes wrong, two builders at one unit end in one committed truth; a lease that is lost, cut
short or stolen costs time.
"""

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from kdcache.cache.storage.objects import Objects
from kdcache.cache.storage.writers import has_ended

Place = tuple[int, int]  # pass, unit

LEASES = "kd/leases"
HEARTBEAT_S = 15.0
_NAME = re.compile(r"(\d{6,12})-(\d{1,3})")


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenLease:
    """A unit's newest lease, as one observer has seen it so far. Host and process are what the holder says."""

    pass_index: int
    unit: int
    takeover: int
    host: str
    process: int
    seen_s: float  # since this observer saw it first
    unchanged_s: float  # of that, without a heartbeat

    @property
    def process_is_gone(self) -> bool:
        """Whether it was a process of this host that has ended."""
        return has_ended(self.host, self.process)


@dataclass(slots=True)
class _Sight:
    data: bytes
    first_at: float  # monotonic
    looked_at: float
    unchanged_s: float = 0.0


class LeaseWatch:
    """An observer of leases. It goes by what changes between its looks, never by what is written as a time."""

    def __init__(self, objects: Objects, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._objects = objects
        self._heartbeat_s = heartbeat_s
        self._sights: dict[str, _Sight] = {}

    def newest(self, pass_index: int) -> dict[int, int]:
        """The leased units of a pass, each with its newest lease's number; one listing."""
        newest: dict[int, int] = {}
        for name in self._objects.names(f"{LEASES}/{pass_index:03d}"):
            if match := _NAME.fullmatch(name):
                unit, takeover = int(match[1]), int(match[2])
                newest[unit] = max(takeover, newest.get(unit, 0))
        return newest

    def look(self, pass_index: int, leases: Mapping[int, int]) -> list[SeenLease]:
        """Look at these leases, unit -> number; one small read each. Those that are gone meanwhile are left out."""
        seen = [self._look(pass_index, unit, takeover) for unit, takeover in sorted(leases.items())]
        return [lease for lease in seen if lease is not None]

    def _look(self, pass_index: int, unit: int, takeover: int) -> SeenLease | None:
        path = lease_path(pass_index, unit, takeover)
        try:
            data = self._objects.get(path)  # not read_range, which holds files open: this one is replaced
        except FileNotFoundError:
            self._sights.pop(path, None)
            return None
        now = time.monotonic()
        sight = self._sights.setdefault(path, _Sight(data, now, now))
        # Time in which nobody looked, as in an outage of the storage, counts as one heartbeat: the holder could not
        # beat either.
        same = sight.data == data
        sight.unchanged_s = sight.unchanged_s + min(now - sight.looked_at, self._heartbeat_s) if same else 0.0
        sight.data, sight.looked_at = data, now
        host, process = _read_holder(data)
        return SeenLease(
            pass_index=pass_index,
            unit=unit,
            takeover=takeover,
            host=host,
            process=process,
            seen_s=now - sight.first_at,
            unchanged_s=sight.unchanged_s,
        )


def lease_path(pass_index: int, unit: int, takeover: int) -> str:
    """Where the lease of a unit stands, by how often it was taken over."""
    return f"{LEASES}/{pass_index:03d}/{unit:06d}-{takeover}"


def count_leases(objects: Objects) -> int:
    """Leases of builders, at work or dead."""
    return sum(len(objects.names(f"{LEASES}/{folder}")) for folder in objects.names(LEASES))


def _read_holder(data: bytes) -> tuple[str, int]:
    """Host and process, as anybody may have written them; of a lease that is damaged, nobody's."""
    with suppress(ValueError, TypeError, KeyError):
        fields = json.loads(data)
        host, process = fields["host"], fields["process"]
        if isinstance(host, str) and host.isprintable() and type(process) is int and 0 < process < 2**31:
            return host[:64], process
    return "?", 0
