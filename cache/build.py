"""The build: every planned view goes once through the teacher, and its targets land in the store.

Decoding runs in threads ahead of the teacher; encoding, hashing and writing of a finished unit run behind it. Batches
never cross units and the last one is padded to full size, so a unit's bytes do not depend on which process made it
or on what was done before. Whatever dies, the next build goes on from the last committed unit.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from typing import Self

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from kdcache.cache.calibration import Calibration
from kdcache.cache.codecs import FAULTS, canonical_request, fit_codec
from kdcache.cache.datasets import SegmentationDataset
from kdcache.cache.errors import IncompleteError, StoreMismatchError, TeacherError, UsageError
from kdcache.cache.progress import Progress, silent
from kdcache.cache.replay import Crop, compare_digest, crop_digest, entry_row, parse_entry_row, replay
from kdcache.cache.sanity import check_teacher, require_sane
from kdcache.cache.shards import ArrayLayout
from kdcache.cache.shuffle import permutation
from kdcache.cache.spec import DatasetIdentity, StoreSpec, TargetSpec, default_unit_entries
from kdcache.cache.store import VIEWS, Store
from kdcache.cache.teacher import Teacher
from kdcache.cache.views import ViewPolicy, draw_view

CALIBRATION_ENTRIES = 16  # the first entries of pass 0: seeded-random images, one view each
CANARY_ENTRIES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """How a build runs; nothing here is part of the key."""

    batch_size: int = 8  # crops a teacher batch; recorded, since floating point depends on it
    decode_threads: int = 4
    units_in_flight: int = 2  # finished units waiting to be written; each holds one raw shard of every array
    force: bool = False  # go on although the teacher's check failed

    def __post_init__(self) -> None:
        for name in ("batch_size", "decode_threads", "units_in_flight"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """What one build did, over this process alone."""

    units_built: int
    units_before: int  # committed before this build began
    units_left: int  # inputs on record differ from those made here
    entries_built: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """What a build would write, measured on a few crops."""

    entries: int
    units: int
    units_committed: int
    bytes_per_entry: Mapping[str, int]  # by array
    seconds_per_entry: float

    @property
    def total_bytes(self) -> int:
        return self.entries * sum(self.bytes_per_entry.values())

    @property
    def seconds_left(self) -> float:
        return self.seconds_per_entry * self.entries * (1 - self.units_committed / self.units)


@dataclass(frozen=True, slots=True)
class CutEntry:
    """One view, cut out: its row of the inputs and its crop."""

    row: np.ndarray  # (columns,) int32
    crop: Crop


def plan_store(
    dataset: SegmentationDataset,
    teacher: Teacher,
    policy: ViewPolicy,
    *,
    seed: int,
    targets: Mapping[str, str],  # target -> codec request
    unit_entries: int | None = None,
) -> StoreSpec:
    """The spec of the store that these choices lead to."""
    crop = (policy.crop_height_px, policy.crop_width_px)
    specs = {
        name: TargetSpec(codec=canonical_request(request), shape=teacher.target_shape(name, crop))
        for name, request in targets.items()
    }
    return StoreSpec(
        dataset=DatasetIdentity(
            name=dataset.name,
            split=dataset.split,
            images=len(dataset),
            fingerprint=dataset.fingerprint(),
            class_names=tuple(dataset.classes.names),
        ),
        teacher=teacher.identity(),
        views=policy,
        seed=seed,
        targets=specs,
        unit_entries=unit_entries or default_unit_entries(specs),
    )


def build_store(
    store: Store,
    dataset: SegmentationDataset,
    teacher: Teacher,
    *,
    passes: int,
    options: BuildOptions,
    state: PartialState | None = None,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> BuildResult:
    """Bring `store` to `passes` passes, from wherever it stands. `state` gives this process its share of the units.

    Raises:
        TeacherError: the teacher looks like chance or like misaligned, or gave NaN, infinity or values out of range.
        StoreMismatchError: this machine's crops differ from the store's canary crops.
        IncompleteError: units were left whose inputs, put by another builder, differ from those made here.
    """
    rank, world = (state.process_index, state.num_processes) if state else (0, 1)
    began = time.monotonic()
    with _Builder(store, dataset, teacher, options) as builder:
        if rank == 0:
            if not store.is_calibrated:
                store.adopt_calibration(builder.calibrate(report))
            store.raise_goal(passes)
            for index in range(passes):
                store.create_pass(index)
        if state:
            state.wait_for_everyone()
        builder.check_canaries()
        committed = {index: store.committed_units(index) for index in range(passes)}
        share = [
            (index, unit)
            for index in range(passes)
            for unit in range(store.spec.units_per_pass)
            if (index * store.spec.units_per_pass + unit) % world == rank and unit not in committed[index]
        ]
        left = builder.build(share, progress)
    if state:
        state.wait_for_everyone()
    for index in range(passes):
        store.finish_pass(index)
    if left:
        units = ", ".join(f"{index}/{unit}" for index, unit in left[:8])
        raise IncompleteError(
            f"{len(left)} units (pass/unit {units}) were begun by a builder whose crops differ from those made here",
            hint="their images or image libraries differ; let that builder finish them",
        )
    return BuildResult(
        units_built=len(share),
        units_before=sum(len(units) for units in committed.values()),
        units_left=len(left),
        entries_built=sum(len(store.spec.unit_rows(unit)) for _, unit in share),
        seconds=time.monotonic() - began,
    )


def measure_plan(
    spec: StoreSpec, dataset: SegmentationDataset, teacher: Teacher, *, passes: int, options: BuildOptions
) -> BuildPlan:
    """What a build of `passes` passes would write and how long it would take, from two batches; writes nothing."""
    entries = [
        cut_entry(dataset, spec, 0, position) for position in range(min(len(dataset), options.batch_size))
    ]
    codecs = {}
    for name, target in _run_teacher(teacher, entries, options.batch_size, tuple(spec.targets)).items():
        codecs[name] = fit_codec(spec.targets[name].codec, [target])
    began = time.monotonic()
    with ThreadPoolExecutor(options.decode_threads) as pool:
        entries = list(pool.map(lambda position: cut_entry(dataset, spec, 0, position), range(len(entries))))
    decoded = time.monotonic()
    targets = _run_teacher(teacher, entries, options.batch_size, tuple(spec.targets))
    codes = {name: codecs[name].encode(target)[0].cpu().numpy() for name, target in targets.items()}
    ran = time.monotonic()
    rows = {VIEWS: np.stack([entry.row for entry in entries]), **codes}
    sizes = {
        name: -(-sum(len(_layout(name, row[None]).encode(row[None])) for row in array) // len(entries))
        for name, array in rows.items()
    }
    # Decoding and writing hide behind the teacher when there are cores to spare; the slowest of them decides.
    slowest = max(decoded - began, ran - decoded, time.monotonic() - ran)
    return BuildPlan(
        entries=passes * spec.dataset.images,
        units=passes * spec.units_per_pass,
        units_committed=0,
        bytes_per_entry=sizes,
        seconds_per_entry=slowest / len(entries),
    )


class _Builder:
    """The pipeline of one process: decode threads, the teacher, a writer thread."""

    def __init__(
        self, store: Store, dataset: SegmentationDataset, teacher: Teacher, options: BuildOptions
    ) -> None:
        self.store = store
        self.dataset = dataset
        self.teacher = teacher
        self.options = options
        self.decoders = ThreadPoolExecutor(options.decode_threads, thread_name_prefix="decode")
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="write")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.decoders.shutdown(cancel_futures=True)
        self.writer.shutdown(cancel_futures=True)

    def calibrate(self, report: Callable[[str], None]) -> Calibration:
        """Fit the codecs and check the teacher on the first entries of pass 0."""
        spec = self.store.spec
        count = min(CALIBRATION_ENTRIES, spec.dataset.images)
        entries = list(self._cut_ahead((0, position) for position in range(count)))
        sample: dict[str, list[Tensor]] = {name: [] for name in dict.fromkeys(("logits", *spec.targets))}
        for batch in _batches(entries, self.options.batch_size):
            for name, target in _run_teacher(
                self.teacher, batch, self.options.batch_size, tuple(sample)
            ).items():
                _require_finite(target, batch, self.store.image_ids, name)
                sample[name].append(target)
        labels = torch.from_numpy(np.stack([entry.crop.label for entry in entries]))
        valid = torch.tensor([(entry.crop.height, entry.crop.width) for entry in entries])
        check = check_teacher(torch.cat(sample["logits"]).cpu(), labels, valid)
        report(check.text)
        if not self.options.force:
            require_sane(check)
        return Calibration(
            spec_key=spec.key,
            codecs={name: fit_codec(target.codec, sample[name]) for name, target in spec.targets.items()},
            canaries=tuple(tuple(int(word) for word in entry.row) for entry in entries[:CANARY_ENTRIES]),
            teacher_check=check.to_dict(),
        )

    def check_canaries(self) -> None:
        """Refuse to join a store whose crops this machine cannot make again."""
        rows = [parse_entry_row(np.array(row, dtype=np.int32)) for row in self.store.calibration.canaries]
        for position, stored in enumerate(rows):
            found = parse_entry_row(cut_entry(self.dataset, self.store.spec, 0, position).row)
            reason = (
                "another view" if stored.view != found.view else compare_digest(stored.digest, found.digest)
            )
            if reason:
                raise StoreMismatchError(
                    f"image {self.store.image_ids[stored.image_index]}: this machine makes another crop than the one"
                    f" the store was begun with ({reason})",
                    hint="use the same images and the same Pillow version; `kdcache info` shows the versions",
                )

    def build(self, units: list[tuple[int, int]], progress: Progress) -> list[tuple[int, int]]:
        """Build and commit `units`, each (pass, unit); the ones whose inputs on record differ are left and returned."""
        spec = self.store.spec
        total = sum(len(spec.unit_rows(unit)) for _, unit in units)
        entries = self._cut_ahead(
            (index, position) for index, unit in units for position in spec.unit_rows(unit)
        )
        writing: deque[Future[bool]] = deque()
        written: list[bool] = []
        done = 0
        for index, unit in units:
            began = time.monotonic()
            pending = _PendingUnit(index, unit)
            for start in range(0, len(spec.unit_rows(unit)), self.options.batch_size):
                count = min(self.options.batch_size, len(spec.unit_rows(unit)) - start)
                batch = list(islice(entries, count))
                pending.add(batch, self._encode(batch))
                done += count
                progress(done, total, f"pass {index}")
            while len(writing) >= self.options.units_in_flight:
                written.append(writing.popleft().result())
            writing.append(self.writer.submit(self._write, pending, time.monotonic() - began))
        written += [future.result() for future in writing]
        return [unit for unit, ok in zip(units, written, strict=True) if not ok]

    def _cut_ahead(self, places: Iterable[tuple[int, int]]) -> Iterator[CutEntry]:
        """Entries in the order of `places` (pass, position), decoded a few batches ahead of the consumer."""
        waiting: deque[Future[CutEntry]] = deque()
        for place in places:
            waiting.append(self.decoders.submit(cut_entry, self.dataset, self.store.spec, *place))
            if len(waiting) > 2 * self.options.batch_size + self.options.decode_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _encode(self, batch: list[CutEntry]) -> dict[str, tuple[Tensor, Tensor]]:
        """Codes and faults of a batch by target, on their way to host memory."""
        codecs = self.store.calibration.codecs
        targets = _run_teacher(self.teacher, batch, self.options.batch_size, tuple(codecs))
        encoded = {}
        for name, target in targets.items():
            codes, faults = codecs[name].encode(target)
            encoded[name] = codes.to("cpu", non_blocking=True), faults.to("cpu", non_blocking=True)
        return encoded

    def _write(self, pending: "_PendingUnit", seconds: float) -> bool:
        rows = pending.collect(self.store.image_ids)
        built = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(seconds, 3),
            "batch_size": self.options.batch_size,
            "threads": torch.get_num_threads(),
            "device": device_name(self.teacher.device),
            "versions": {
                name: version(name)
                for name in ("torch", "torchvision", "zarr", "numcodecs", "numpy", "pillow")
            },
        }
        try:
            self.store.put_unit(pending.pass_index, pending.unit, rows, built)
        except StoreMismatchError:
            return False
        return True


class _PendingUnit:
    """A unit whose batches are still on their way from the device."""

    def __init__(self, pass_index: int, unit: int) -> None:
        self.pass_index = pass_index
        self.unit = unit
        self.rows: list[np.ndarray] = []
        self.batches: list[dict[str, tuple[Tensor, Tensor]]] = []
        self.copied: list[torch.cuda.Event] = []

    def add(self, entries: list[CutEntry], encoded: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.rows += [entry.row for entry in entries]
        self.batches.append(encoded)
        if torch.cuda.is_available():
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self.copied.append(event)

    def collect(self, image_ids: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Every array's rows, (n, ...), once all copies have arrived. Raises TeacherError for a faulty row."""
        for event in self.copied:
            event.synchronize()
        rows = {VIEWS: np.stack(self.rows)}
        for name in self.batches[0]:
            codes = torch.cat([batch[name][0] for batch in self.batches])
            faults = torch.cat([batch[name][1] for batch in self.batches])
            for row in faults.nonzero().flatten().tolist():
                entry = parse_entry_row(self.rows[row])
                raise TeacherError(
                    f"the teacher's {name} for view {entry.view_index} of image {image_ids[entry.image_index]} are"
                    f" {FAULTS[int(faults[row])]}; nothing of unit {self.unit} of pass {self.pass_index} was committed",
                    hint="check the weights and --precision; another codec may span the range",
                )
            rows[name] = codes.numpy()
        return rows


@lru_cache(maxsize=8)
def pass_order(seed: int, pass_index: int, n_images: int) -> np.ndarray:
    """The image at each position of a pass, (n_images,) int64."""
    return permutation(f"{seed} pass {pass_index}", n_images)


def device_name(device: torch.device) -> str:
    """The device as a person knows it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def cut_entry(dataset: SegmentationDataset, spec: StoreSpec, pass_index: int, position: int) -> CutEntry:
    """The entry at a place of the store, decoded, drawn and cut."""
    index = int(pass_order(spec.seed, pass_index, spec.dataset.images)[position])
    image, label = dataset.image(index), dataset.label(index)
    view = draw_view(spec.views, spec.seed, dataset.image_ids[index], pass_index, image.shape[:2], label)
    crop = replay(view, spec.views, image, label)
    return CutEntry(entry_row(index, pass_index, view, crop_digest(crop)), crop)


def _run_teacher(
    teacher: Teacher, entries: list[CutEntry], batch_size: int, names: tuple[str, ...]
) -> dict[str, Tensor]:
    """Targets (n, C, h, w) float32 of the entries, n <= batch_size; the batch is padded to full size."""
    padded = entries + [entries[-1]] * (batch_size - len(entries))
    crops = torch.from_numpy(np.stack([entry.crop.image for entry in padded]))
    valid = torch.tensor([(entry.crop.height, entry.crop.width) for entry in padded])
    outputs = teacher(
        crops.to(teacher.device, non_blocking=True), valid.to(teacher.device, non_blocking=True)
    )
    return {name: outputs[name][: len(entries)] for name in dict.fromkeys(names)}


def _require_finite(target: Tensor, entries: list[CutEntry], image_ids: tuple[str, ...], name: str) -> None:
    for row in (~torch.isfinite(target).flatten(1).all(dim=1)).nonzero().flatten().tolist():
        image = image_ids[parse_entry_row(entries[row].row).image_index]
        raise TeacherError(
            f"the teacher's {name} for image {image} are not finite", hint="check the weights and --precision"
        )


def _batches(entries: list[CutEntry], size: int) -> Iterator[list[CutEntry]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


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
