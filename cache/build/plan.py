"""The plan: what a build would write and how long it would take, measured by a trial build of a few batches.

The trial is a real build, with its calibration, into memory. So its time and its bytes are those of the real one,
except for the disk. Nothing is written to any disk.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil

from kdcache.cache.build.assignment import FixedAssignment
from kdcache.cache.build.builder import Builder, BuildOptions
from kdcache.cache.codecs.registry import Codec
from kdcache.cache.images.datasets import SegmentationDataset
from kdcache.cache.progress import Pace, Progress, silent
from kdcache.cache.storage.opening import open_probe
from kdcache.cache.store.opening import create_store
from kdcache.cache.store.spec import StoreSpec
from kdcache.cache.store.store import Store
from kdcache.cache.teachers.teacher import Teacher

TRIAL_BATCHES = 4  # the first one warms up and is not timed


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """What a store would contain, and how much of it a build still has to make."""

    entries: int
    units: int
    units_committed: int  # of these passes, by earlier builds
    entries_left: int
    batches_left: int  # short ones cost as much as full ones, because they are padded
    unit_bytes: int  # before compression: the memory that each unit in flight takes
    bytes_per_entry: Mapping[str, int]  # stored bytes, by array
    calibration_s: float  # 0 if the store is calibrated already
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
        """Of a build by one process."""
        return self.calibration_s + self.seconds_per_batch * self.batches_left if self.batches_left else 0.0


def measure_plan(
    spec: StoreSpec,
    dataset: SegmentationDataset,
    teacher: Teacher,
    *,
    passes: int,
    options: BuildOptions,
    store: Store | None = None,  # the store of that spec, if it exists
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> BuildPlan:
    """What a build of `passes` passes would write and how long it would take.

    Raises:
        TeacherError: as the build itself would.
    """
    left = [
        len(spec.unit_rows(unit))
        for index in range(passes)
        for unit in set(range(spec.units_per_pass)) - (store.committed_units(index) if store else set())
    ]
    batch_size = options.batch_size_of(spec)
    with _trial_store(spec, dataset.image_ids, batch_size) as trial:
        calibration_s = _calibrate(trial, store, dataset, teacher, options, progress, report)
        units, batch_s = _build_trial(trial, dataset, teacher, options, progress)
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
def _trial_store(spec: StoreSpec, image_ids: tuple[str, ...], batch_size: int) -> Iterator[Store]:
    """An empty store of the same views in memory, with small units, so that writing is timed too."""
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
    """Calibrate as the build would, or use the calibration that it would use. Returns the seconds this takes."""
    if store and store.is_calibrated:
        trial.adopt_calibration(replace(store.calibration, spec_key=trial.spec.key))
        return 0.0
    began = time.monotonic()
    with Builder(trial, dataset, teacher, options, progress) as builder:
        trial.adopt_calibration(builder.calibrate(report))
    return time.monotonic() - began


def _build_trial(
    trial: Store, dataset: SegmentationDataset, teacher: Teacher, options: BuildOptions, progress: Progress
) -> tuple[list[int], float]:
    """Build a few whole units. Returns which, and the seconds for each batch."""
    spec = trial.spec
    batches_per_unit = -(-spec.unit_entries // options.batch_size_of(spec))
    whole = max(1, spec.dataset.images // spec.unit_entries)
    # The last units of a pass: codecs were fitted to the first entries and are too good on them.
    units = list(range(whole))[-max(1, TRIAL_BATCHES // batches_per_unit) :]
    trial.create_pass(0)
    pace = Pace(progress)
    began, busy = time.monotonic(), time.process_time()
    with Builder(trial, dataset, teacher, options, pace) as builder:
        builder.build(FixedAssignment(trial, [(0, unit) for unit in units]))
    if pace.seconds_per_call is None:
        return units, time.monotonic() - began
    # The slowest part decides: the teacher with encoding, batch by batch; or writing, which ends last; or all work of
    # the processor, which includes the decoding that the first batch waited for.
    processor_s = (time.process_time() - busy) / _cores()
    return units, max(
        pace.seconds_per_call, *(s / pace.calls for s in (pace.seconds_since_first(), processor_s))
    )


def _stored_bytes(trial: Store, units: list[int], spec: StoreSpec) -> dict[str, int]:
    """Stored bytes per entry by array, measured on these units, with its part of the index of a shard of `spec`."""
    commits = [trial.commit_of(0, unit) for unit in units]
    entries = sum(commit.entries for commit in commits)
    sizes = {}
    for name, layout in trial.layouts(0).items():
        rows = sum(commit.objects[name].size - layout.index_bytes for commit in commits) / entries
        index = replace(layout, unit_entries=spec.unit_entries).index_bytes * spec.units_per_pass
        sizes[name] = ceil(rows + index / spec.dataset.images)
    return sizes


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
