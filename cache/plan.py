"""The plan: what a build would write and how long it would take, from a few measured crops. It writes nothing."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from kdcache.cache.build import BuildOptions
from kdcache.cache.calibrate import make_samples, run_sample
from kdcache.cache.codec import Codec
from kdcache.cache.codecs import resolve_codec
from kdcache.cache.datasets import SegmentationDataset
from kdcache.cache.entries import CutEntry, cut_entry, input_rows, run_teacher
from kdcache.cache.progress import silent
from kdcache.cache.shards import ArrayLayout
from kdcache.cache.spec import StoreSpec
from kdcache.cache.store import Store
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
    outputs = run_sample(
        teacher, entries, dataset.image_ids, tuple(spec.targets), batch_size=batch_size, progress=silent
    )  # also warms the teacher up
    codecs = (
        store.calibration.codecs
        if store and store.is_calibrated
        else _fit(spec, dataset, teacher, entries, outputs, batch_size)
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


def _fit(
    spec: StoreSpec,
    dataset: SegmentationDataset,
    teacher: Teacher,
    entries: list[CutEntry],
    outputs: Mapping[str, list[Tensor]],
    batch_size: int,
) -> dict[str, Codec]:
    judged = max(1, len(entries) // 2)
    samples = make_samples(
        spec, teacher, entries, outputs, dataset.image_ids, judged=judged, batch_size=batch_size
    )
    return {name: resolve_codec(spec.targets[name].codec, sample) for name, sample in samples.items()}


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
    rows = input_rows(spec, [entry.inputs for entry in entries])
    rows |= {name: codecs[name].pack(array) for name, array in codes.items()}
    sizes = {
        name: -(-len(ArrayLayout.of_packing(name, packing, rows=n).encode(rows[name])) // n)
        for name, packing in spec.packings(codecs).items()
    }
    written = time.monotonic()
    # Decoding and writing hide behind the teacher when there are cores to spare: the slowest of the three decides.
    return max(decoded - began, ran - decoded, written - ran) / n, sizes
