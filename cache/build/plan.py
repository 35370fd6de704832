"""The plan: what a build would write and how long it would take, from a rehearsal of a few batches.

The rehearsal is the build itself, calibration and all, into memory: what it takes and what it writes are those of the
real one, but for the disk. Nothing is written anywhere.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil

from kdcache.cache.build.builder import Builder, BuildOptions
from kdcache.cache.codecs.registry import Codec
from kdcache.cache.images.datasets import SegmentationDataset
from kdcache.cache.progress import Pace, Progress, silent
from kdcache.cache.build.shares import FixedShare
from kdcache.cache.store.spec import StoreSpec
from kdcache.cache.storage.opening import open_probe
from kdcache.cache.store.store import Store
from kdcache.cache.store.opening import create_store
from kdcache.cache.teachers.teacher import Teacher

REHEARSED_BATCHES = 4  # the first warms up


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """What a store would hold, and what of it a build would still have to make."""

    entries: int
    units: int
    units_committed: int  # by earlier builds, of these passes
    entries_left: int
    batches_left: int  # padded ones cost as much as full ones
    unit_bytes: int  # raw: each unit in flight takes as much memory
    bytes_per_entry: Mapping[str, int]  # stored, by array
    calibration_s: float  # 0 where a calibration stands
    seconds_per_batch: float
    codecs: Mapping[str, Codec]  # by target, as calibrated

    @property
    def total_bytes(self) -> int:
        return self.entries * sum(self.bytes_per_entry.values())

    @property
    def bytes_left(self) -> int:
        return self.entries_left * sum(self.bytes_per_entry.values())

    @property
    def seconds_left(self) -> float:
        """Of one process."""
        return self.calibration_s + self.seconds_per_batch * self.batches_left if self.batches_left else 0.0


def measure_plan(
    spec: StoreSpec,
    dataset: SegmentationDataset,
    teacher: Teacher,
    *,
    passes: int,
    options: BuildOptions,
    store: Store | None = None,  # of that spec, where one stands
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> BuildPlan:
    """What a build of `passes` passes would write and take.

    Raises:
        TeacherError: as the build itself would.
    """
    left = [
        len(spec.unit_rows(unit))
        for index in range(passes)
        for unit in set(range(spec.units_per_pass)) - (store.committed_units(index) if store else set())
    ]
    batch_size = options.batch_size_of(spec)
    with _rehearsing(spec, dataset.image_ids, batch_size) as trial:
        calibration_s = _calibrate(trial, store, dataset, teacher, options, progress, report)
        units, batch_s = _rehearse(trial, dataset, teacher, options, progress)
        return BuildPlan(
            entries=passes * spec.dataset.images,
            units=passes * spec.units_per_pass,
            units_committed=passes * spec.units_per_pass - len(left),
            entries_left=sum(left),
            batches_left=sum(-(-rows // batch_size) for rows in left),
            unit_bytes=spec.unit_bytes,
            bytes_per_entry=_stored_bytes(trial, units, spec),
            calibration_s=calibration_s,
            seconds_per_batch=batch_s,
            codecs=trial.calibration.codecs,
        )


@contextmanager
def _rehearsing(spec: StoreSpec, image_ids: tuple[str, ...], batch_size: int) -> Iterator[Store]:
    """An empty store of the same views in memory, its units small: a few of them show writing beside the teacher."""
    unit_entries = min(spec.unit_entries, 2 * batch_size)
    with open_probe("memory://kdcache") as objects:
        yield create_store(objects.url, replace(spec, unit_entries=unit_entries), image_ids)


def _calibrate(
    trial: Store,
    store: Store | None,
    dataset: SegmentationDataset,
    teacher: Teacher,
    options: BuildOptions,
    progress: Progress,
    report: Callable[[str], None],
) -> float:
    """Calibrate as the build would, or adopt what it would adopt; the seconds that it takes."""
    if store and store.is_calibrated:
        trial.adopt_calibration(replace(store.calibration, spec_key=trial.spec.key))
        return 0.0
    began = time.monotonic()
    with Builder(trial, dataset, teacher, options, progress) as builder:
        trial.adopt_calibration(builder.calibrate(report))
    return time.monotonic() - began


def _rehearse(
    trial: Store, dataset: SegmentationDataset, teacher: Teacher, options: BuildOptions, progress: Progress
) -> tuple[list[int], float]:
    """Build a few whole units; which, and seconds a batch. They end a pass, whose first entries codecs were fitted to."""
    spec = trial.spec
    batches_per_unit = -(-spec.unit_entries // options.batch_size_of(spec))
    whole = max(1, spec.dataset.images // spec.unit_entries)
    units = list(range(whole))[-max(1, REHEARSED_BATCHES // batches_per_unit) :]
    trial.create_pass(0)
    pace = Pace(progress)
    began, busy = time.monotonic(), time.process_time()
    with Builder(trial, dataset, teacher, options, pace) as builder:
        builder.build(FixedShare(trial, [(0, unit) for unit in units]))
    if pace.seconds_per_call is None:
        return units, time.monotonic() - began
    # The slowest decides: teacher and encoding, batch by batch; the writer, which ends last; or all that the
    # processor does, decoding too, which the first batch's wait hides.
    processor_s = (time.process_time() - busy) / _cores()
    return units, max(
        pace.seconds_per_call, *(s / pace.calls for s in (pace.seconds_since_first(), processor_s))
    )


def _stored_bytes(trial: Store, units: list[int], spec: StoreSpec) -> dict[str, int]:
    """Bytes an entry by array, of these units, with its part of the index of a shard of `spec`'s."""
    commits = [trial.commit_of(0, unit) for unit in units]
    entries = sum(commit.entries for commit in commits)
    sizes = {}
    for name, layout in trial.layouts(0).items():
        rows = sum(commit.objects[name].size - layout.index_bytes for commit in commits) / entries
        index = replace(layout, unit_entries=spec.unit_entries).index_bytes * spec.units_per_pass
        sizes[name] = ceil(rows + index / spec.dataset.images)
    return sizes


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
