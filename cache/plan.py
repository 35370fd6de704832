"""The plan: what a build would write and how long it would take, from a few measured crops. It writes nothing."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kdcache.cache.build import BuildOptions
from kdcache.cache.codecs import Codec, fit_codec
from kdcache.cache.datasets import SegmentationDataset
from kdcache.cache.entries import CutEntry, cut_entry, require_finite, run_teacher
from kdcache.cache.shards import ArrayLayout
from kdcache.cache.spec import StoreSpec
from kdcache.cache.store import VIEWS, Store
from kdcache.cache.teacher import Teacher


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """What a store would hold, and what of it a build would still have to make."""

    entries: int
    units: int
    units_committed: int  # by earlier builds, of these passes
    entries_left: int
    unit_bytes: int  # raw: each unit in flight takes as much memory
    bytes_per_entry: Mapping[str, int]  # stored, by array
    seconds_per_entry: float

    @property
    def total_bytes(self) -> int:
        return self.entries * sum(self.bytes_per_entry.values())

    @property
    def bytes_left(self) -> int:
        return self.entries_left * sum(self.bytes_per_entry.values())

    @property
    def seconds_left(self) -> float:
        return self.seconds_per_entry * self.entries_left


def measure_plan(
    spec: StoreSpec,
    dataset: SegmentationDataset,
    teacher: Teacher,
    *,
    passes: int,
    options: BuildOptions,
    store: Store | None = None,  # of that spec, where one stands
) -> BuildPlan:
    """What a build of `passes` passes would write, from two batches of the first entries.

    Raises:
        TeacherError: the teacher gave NaN or infinity.
    """
    left = [
        len(spec.unit_rows(unit))
        for index in range(passes)
        for unit in set(range(spec.units_per_pass)) - (store.committed_units(index) if store else set())
    ]
    batch_size = options.batch_size_of(spec)
    entries = [cut_entry(dataset, spec, 0, position) for position in range(min(len(dataset), batch_size))]
    targets = run_teacher(teacher, entries, batch_size, tuple(spec.targets))  # also warms the teacher up
    for name, target in targets.items():
        require_finite(target, entries, dataset.image_ids, name)
    codecs: Mapping[str, Codec] = (
        store.calibration.codecs
        if store and store.is_calibrated
        else {name: fit_codec(spec.targets[name].codec, [target]) for name, target in targets.items()}
    )
    seconds, sizes = _measure_batch(spec, dataset, teacher, options, codecs, len(entries))
    return BuildPlan(
        entries=passes * spec.dataset.images,
        units=passes * spec.units_per_pass,
        units_committed=passes * spec.units_per_pass - len(left),
        entries_left=sum(left),
        unit_bytes=spec.unit_bytes,
        bytes_per_entry=sizes,
        seconds_per_entry=seconds,
    )


def _measure_batch(
    spec: StoreSpec,
    dataset: SegmentationDataset,
    teacher: Teacher,
    options: BuildOptions,
    codecs: Mapping[str, Codec],
    n: int,
) -> tuple[float, dict[str, int]]:
    """Seconds an entry of the first `n`, and bytes an entry by array."""

    def cut(position: int) -> CutEntry:
        return cut_entry(dataset, spec, 0, position)

    began = time.monotonic()
    with ThreadPoolExecutor(options.decode_threads) as pool:
        entries = list(pool.map(cut, range(n)))
    decoded = time.monotonic()
    targets = run_teacher(teacher, entries, options.batch_size_of(spec), tuple(spec.targets))
    codes = {name: codecs[name].encode(target)[0].cpu().numpy() for name, target in targets.items()}
    ran = time.monotonic()
    rows = {VIEWS: np.stack([entry.row for entry in entries]), **codes}
    sizes = {name: -(-len(_layout(name, array).encode(array)) // n) for name, array in rows.items()}
    written = time.monotonic()
    # Decoding and writing hide behind the teacher when there are cores to spare: the slowest of the three decides.
    return max(decoded - began, ran - decoded, written - ran) / n, sizes


def _layout(name: str, rows: np.ndarray) -> ArrayLayout:
    """A layout that holds just `rows`, to see what they come to."""
    return ArrayLayout(
        name=name,
        rows=len(rows),
        row_shape=rows.shape[1:],
        dtype=str(rows.dtype),
        unit_entries=len(rows),
        dimensions=tuple("entry" if axis == 0 else f"axis_{axis}" for axis in range(rows.ndim)),
    )
