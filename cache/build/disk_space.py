"""Remaining work: bytes and time that a build has left, and whether the disk has space for them.

This costs a build nothing. Bytes follow from the sizes in the calibration; time from the teacher's speed on the
calibration's crops, or from the last committed unit if another builder made the calibration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from kdcache.cache.errors import StoreDamagedError, UsageError
from kdcache.cache.storage.urls import redact
from kdcache.cache.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class RemainingWork:
    """What is left of a build."""

    entries_left: int
    bytes_left: int
    free_bytes: int | None  # None if the storage does not say
    seconds_left: float | None  # None if nothing was timed yet

    @property
    def fits(self) -> bool:
        """True if the storage has space for the bytes that are left, or does not say."""
        return self.free_bytes is None or self.bytes_left <= self.free_bytes


def remaining_work(
    store: Store, units: Sequence[tuple[int, int]], teacher_s: float | None, *, processes: int
) -> RemainingWork:
    """The work for these units (pass, unit). `teacher_s`: seconds per entry, if this process measured them."""
    entries = sum(len(store.spec.unit_rows(unit)) for _, unit in units)
    pace = recorded_pace(store) if teacher_s is None else teacher_s
    return RemainingWork(
        entries_left=entries,
        bytes_left=entries * sum(calibrated_bytes(store).values()),
        free_bytes=store.objects.free_bytes(),
        seconds_left=None if pace is None else pace * entries / processes,
    )


def require_disk_space(remaining: RemainingWork, url: str) -> None:
    """Raises UsageError if the disk has too little space for what is left to write."""
    if not remaining.fits:
        raise UsageError(
            f"{redact(url)}: {remaining.bytes_left:,} bytes are left to write and {remaining.free_bytes:,} are free",
            hint="choose fewer --views, --targets logits or another --home; or build anyway with --force",
        )


def calibrated_bytes(store: Store) -> dict[str, int]:
    """Stored bytes of an entry by array, as measured on the calibration's crops.

    Raises:
        StoreDamagedError: the calibration lacks the sizes.
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
    """A number of bytes from a calibration, checked, because anybody may have written it."""
    if not isinstance(value, int | float) or not 0 < value < 2**40:
        raise StoreDamagedError(
            f"{redact(store.url)}: the calibration does not say how many bytes {name} take"
        )
    return value


def recorded_pace(store: Store) -> float | None:
    """Seconds per entry of the unit that was committed last, by any builder; None if there is none."""
    for index in reversed(store.begun_passes()):
        if units := store.committed_units(index):
            commit = store.commit_of(index, max(units))
            seconds = commit.built.get("seconds")
            return seconds / commit.entries if isinstance(seconds, float) else None
    return None
