"""Room: what a build has before it, by what its calibration measured, and whether the disk holds that.

It costs a build nothing: bytes follow from the codecs' fidelity on record, time from the teacher's pace on the
calibration's crops, or from the last unit on record where the calibration was another builder's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from kdcache.cache.errors import StoreDamagedError, UsageError
from kdcache.cache.store.store import Store
from kdcache.cache.storage.urls import redact


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What is left of a build."""

    entries_left: int
    bytes_left: int
    free_bytes: int | None  # None where nobody says
    seconds_left: float | None  # None where nothing was timed yet

    @property
    def fits(self) -> bool:
        return self.free_bytes is None or self.bytes_left <= self.free_bytes


def look_ahead(
    store: Store, units: Sequence[tuple[int, int]], teacher_s: float | None, *, processes: int
) -> Outlook:
    """What these units, each (pass, unit), will take. `teacher_s` is an entry's, where this process has measured it."""
    entries = sum(len(store.spec.unit_rows(unit)) for _, unit in units)
    pace = recorded_pace(store) if teacher_s is None else teacher_s
    return Outlook(
        entries_left=entries,
        bytes_left=entries * sum(calibrated_bytes(store).values()),
        free_bytes=store.objects.free_bytes(),
        seconds_left=None if pace is None else pace * entries / processes,
    )


def require_disk_space(outlook: Outlook, url: str) -> None:
    """Raises UsageError where the disk does not hold what is left to write."""
    if not outlook.fits:
        raise UsageError(
            f"{redact(url)}: {outlook.bytes_left:,} bytes are left to write and {outlook.free_bytes:,} are free",
            hint="fewer --views, --targets logits, another --home, or --force to begin all the same",
        )


def calibrated_bytes(store: Store) -> dict[str, int]:
    """Stored bytes of an entry, by array, as the calibration's crops have it.

    Raises:
        StoreDamagedError: the calibration does not say what its codecs take.
    """
    calibration = store.calibration
    sizes: dict[str, int] = {}
    for name in store.spec.input_packings:
        sizes[name] = _plausible(store, name, calibration.input_bytes.get(name))
    for name, target in store.spec.targets.items():
        bytes_per_value = calibration.fidelity.get(name, {}).get("bytes_per_value")
        sizes[name] = ceil(_plausible(store, name, bytes_per_value) * prod(target.shape))
    return sizes


def _plausible(store: Store, name: str, value: Any) -> Any:
    """A number of bytes as a calibration states it, checked: it may be anybody's."""
    if not isinstance(value, int | float) or not 0 < value < 2**40:
        raise StoreDamagedError(f"{redact(store.url)}: the calibration does not say what {name} take")
    return value


def recorded_pace(store: Store) -> float | None:
    """Seconds an entry of the unit that was committed last, by any builder."""
    for index in reversed(store.begun_passes()):
        if units := store.committed_units(index):
            commit = store.commit_of(index, max(units))
            seconds = commit.built.get("seconds")
            return seconds / commit.entries if isinstance(seconds, float) else None
    return None
