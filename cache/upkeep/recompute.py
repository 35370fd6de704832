"""Recomputing: the teacher runs again on entries of a store, to rebuild a unit or to check one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.build.entries import cut_entry, input_rows, run_teacher
from kdcache.cache.codecs.registry import FAULTS
from kdcache.cache.errors import StoreMismatchError, TeacherError
from kdcache.cache.images.dataset import SegmentationDataset
from kdcache.cache.progress import Progress, silent
from kdcache.cache.store.reader import Entry, StoreReader
from kdcache.cache.store.spec import StoreSpec
from kdcache.cache.store.store import Store
from kdcache.cache.teachers.teacher import Teacher
from kdcache.cache.views.replay import Crop, compare_digest, crop_digest, replay

# Allowed error, times what the codec lost in the calibration: other machines round differently
_ERROR_FACTOR = 10.0
_SMALL_ERROR = 0.01  # relative error that is never suspicious


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetDifference:
    """How far the stored targets of some entries differ from what the teacher gives now."""

    largest_in_bounds: float  # the largest error, divided by the codec's error bound for that value
    relative_error: float  # squared error / variance of the values
    equal_codes: float  # fraction
    is_the_teachers: bool  # near enough to be of the same teacher and the same crop

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "largest_in_bounds": self.largest_in_bounds,
            "relative_error": self.relative_error,
            "equal_codes": self.equal_codes,
            "is_the_teachers": self.is_the_teachers,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Recomputation:
    """The result of recomputing some entries."""

    entries: int
    other_crops: tuple[str, ...]  # entries whose crop differs from the one that the teacher saw, and why
    targets: Mapping[str, TargetDifference]  # over the other entries

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "entries": self.entries,
            "other_crops": list(self.other_crops),
            "targets": {name: found.to_dict() for name, found in self.targets.items()},
        }


def require_same_teacher(spec: StoreSpec, teacher: Teacher, where: str) -> None:
    """Raises StoreMismatchError unless `teacher` is the teacher of the store with this spec."""
    stored, found = spec.teacher, teacher.identity()
    if differing := [name for name in found if stored.get(name) != found[name]]:
        lines = "; ".join(f"{name}: {stored.get(name)}, {found[name]}" for name in differing)
        raise StoreMismatchError(
            f"the teacher is not the one of {where}. Differing fields (in the store, given): {lines}",
            hint="use the store's --teacher, --weights and --precision; `kdcache info` shows them",
        )


def recompute_unit(
    store: Store,
    dataset: SegmentationDataset,
    teacher: Teacher,
    unit_id: tuple[int, int],  # pass, unit
    batch_size: int,  # the same size gives the same bytes on one machine
) -> dict[str, np.ndarray]:
    """The rows of all arrays of a unit, computed again, (n, ...) each. Raises TeacherError for NaN or infinity."""
    pass_index, unit = unit_id
    spec, codecs = store.spec, store.calibration.codecs
    entries = [cut_entry(dataset, spec, pass_index, position) for position in spec.unit_rows(unit)]
    encoded: dict[str, list[Tensor]] = {name: [] for name in codecs}
    for start in range(0, len(entries), batch_size):
        outputs = run_teacher(teacher, entries[start : start + batch_size], batch_size, tuple(codecs))
        for name, target in outputs.items():
            codes, faults = codecs[name].encode(target)
            if fault := int(faults.max()):
                raise TeacherError(
                    f"the teacher's {name} for unit {unit} of pass {pass_index} are {FAULTS[fault]}"
                )
            encoded[name].append(codes.cpu())
    rows = input_rows(spec, [entry.inputs for entry in entries])
    return rows | {name: codecs[name].pack(torch.cat(codes).numpy()) for name, codes in encoded.items()}


def recompute_entries(
    reader: StoreReader,  # of all targets, with crops
    images: SegmentationDataset,
    teacher: Teacher,
    count: int,
    *,
    losses: Mapping[str, Mapping[str, Any]],  # Calibration.fidelity
    progress: Progress = silent,
) -> Recomputation:
    """Compare `count` entries, spread evenly over the complete passes, with a new run of the teacher.

    Raises:
        StoreMismatchError: the teacher is not the store's.
    """
    require_same_teacher(reader.spec, teacher, reader.url)
    total = len(reader.passes) * reader.n_images
    count = min(count, total)
    other_crops: list[str] = []
    sums = {name: _Sums() for name in reader.targets}
    for done, number in enumerate(n * total // count for n in range(count)):
        pass_index, position = reader.passes[number // reader.n_images], number % reader.n_images
        entry = reader.entry(pass_index, position)
        image_id = reader.image_ids[entry.row.image_index]
        try:
            crop = _crop(reader, images, entry)
        except StoreMismatchError as error:
            other_crops.append(f"{image_id} (pass {pass_index}, position {position}): {error}")
        else:
            outputs = _outputs(teacher, crop, reader.targets)
            for name, exact in outputs.items():
                sums[name].add(reader, name, entry, exact)
        progress(done + 1, count, "the teacher again")
    found = {name: s.result(losses.get(name, {})) for name, s in sums.items() if s.values}
    return Recomputation(entries=count, other_crops=tuple(other_crops), targets=found)


def _crop(reader: StoreReader, images: SegmentationDataset, entry: Entry) -> Crop:
    index = entry.row.image_index
    crop = entry.crop or replay(entry.row.view, reader.spec.views, images.image(index), images.label(index))
    if reason := compare_digest(entry.row.digest, crop_digest(crop)):
        raise StoreMismatchError(reason)
    return crop


def _outputs(teacher: Teacher, crop: Crop, targets: Sequence[str]) -> dict[str, Tensor]:
    pixels = torch.from_numpy(crop.image)[None].to(teacher.device)
    valid_size = torch.tensor([[crop.height, crop.width]], device=teacher.device)
    return {name: target.cpu() for name, target in teacher(pixels, valid_size, targets).items()}


@dataclass(slots=True)
class _Sums:
    largest: float = 0.0
    values: int = 0
    codes: int = 0
    equal: int = 0
    error: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(
        self,
        reader: StoreReader,
        name: str,
        entry: Entry,
        exact: Tensor,  # (1, C, h, w) float32
    ) -> None:
        codec = reader.codecs[name]
        codes = torch.from_numpy(entry.codes[name])[None]
        error = (codec.decode(codes) - exact).double()
        self.largest = max(self.largest, float((error.abs() / codec.error_bound(exact)).max()))
        self.values += exact.numel()
        self.codes += codes.numel()
        self.equal += int((codec.encode(exact)[0] == codes).sum())
        self.error += float(error.square().sum())
        self.total += float(exact.double().sum())
        self.squares += float(exact.double().square().sum())

    def result(self, lost: Mapping[str, Any]) -> TargetDifference:
        variance = self.squares - self.total**2 / self.values
        relative = self.error / max(variance, 1e-12)
        allowed = max(_SMALL_ERROR, _ERROR_FACTOR * float(lost.get("relative_error") or 0.0))
        return TargetDifference(
            largest_in_bounds=self.largest,
            relative_error=relative,
            equal_codes=self.equal / self.codes,
            is_the_teachers=self.largest <= 1 or relative <= allowed,
        )
