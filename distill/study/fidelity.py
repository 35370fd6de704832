"""A study of a store: how exact its targets are, compared with the teacher run again in float32 on some entries.

It measures, for every target, the fidelity (cache/codecs/fidelity.py), and the rate and error of every codec on the same
entries; for logits also the teacher's mIoU, exact and as stored; and, given a student, the cosine between its gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.cache.codecs.choose import CalibrationSample
from kdcache.cache.codecs.fidelity import fidelity_of
from kdcache.cache.codecs.rate_distortion import RatePoint, rate_curve
from kdcache.cache.errors import StoreMismatchError, UsageError
from kdcache.cache.images.dataset import SegmentationDataset
from kdcache.cache.progress import Progress, silent
from kdcache.cache.storage.urls import redact
from kdcache.cache.store.reader import StoreReader
from kdcache.cache.teachers.teacher import Teacher
from kdcache.cache.upkeep.recompute import require_same_teacher
from kdcache.cache.views.maps import cell_weights
from kdcache.cache.views.replay import Crop, compare_digest, crop_digest, replay
from kdcache.distill.scoring.scores import count_confusion, score_confusion
from kdcache.distill.students.student import Student
from kdcache.distill.study.gradients import TargetPair, gradient_cosines

GRADIENT_BATCH = 4  # crops of a batch for the gradients


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyEntry:
    """One entry: its crop, the teacher's exact outputs, and those decoded from the store; on the CPU."""

    image_id: str
    view_index: int
    crop: Crop
    exact: Mapping[str, Tensor]  # by target, (1, C, h, w) float32
    stored: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """The results of a study. For the measures see cache/codecs/fidelity.py."""

    entries: Sequence[StudyEntry]
    fidelity: Mapping[str, Mapping[str, Any]]  # by target, with `codec` and `bytes_per_value`
    rates: Mapping[str, Sequence[RatePoint]]  # by target: every codec, on the same entries
    teacher_miou: Mapping[str, float] | None  # of "exact" and "stored" logits; None without labels or logits
    gradient_cosine: Mapping[str, float] | None  # by method; None without a student

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "entries": len(self.entries),
            "fidelity": {target: dict(found) for target, found in self.fidelity.items()},
            "teacher_miou": None if self.teacher_miou is None else dict(self.teacher_miou),
            "gradient_cosine": None if self.gradient_cosine is None else dict(self.gradient_cosine),
            "rates": {
                target: [{"codec": point.request, **point.fidelity} for point in points]
                for target, points in self.rates.items()
            },
        }


def study_store(
    reader: StoreReader,  # opened with all targets
    images: SegmentationDataset,
    teacher: Teacher,
    *,
    count: int,
    student: Student | None = None,
    with_rates: bool = True,
    progress: Progress = silent,
) -> Study:
    """Study `count` entries, spread evenly over the store's complete passes.

    Nothing that the store names is imported or downloaded: you bring the teacher, and its identity must be the store's.

    Args:
        student: compare the gradients of this partly trained student; None to skip that.
        with_rates: also measure all other codecs.

    Raises:
        StoreMismatchError: the teacher is not the store's, or a crop is not the one that it saw.
        UsageError: fewer than two entries: codecs are fitted to one half and measured on the other.
    """
    entries = read_study_entries(reader, images, teacher, count, progress=progress)
    return Study(
        entries=entries,
        fidelity={target: _fidelity(reader, teacher, entries, target) for target in reader.targets},
        rates={target: list(rate_curve(sample_of(teacher, entries, target))) for target in reader.targets}
        if with_rates
        else {},
        teacher_miou=_teacher_miou(images, entries) if "logits" in reader.targets else None,
        gradient_cosine=None if student is None else _gradient_cosine(student, entries, teacher.device),
    )


def read_study_entries(
    reader: StoreReader,
    images: SegmentationDataset,
    teacher: Teacher,
    count: int,
    *,
    progress: Progress = silent,
) -> list[StudyEntry]:
    """Read `count` entries, spread evenly over the complete passes, and run the teacher on them. Raises as `study_store`."""
    require_same_teacher(reader.spec, teacher, reader.url)
    positions, entries = _spread_positions(reader, count), []
    for done, (pass_index, position) in enumerate(positions):
        entries.append(_read_entry(reader, images, teacher.in_float32(), pass_index, position))
        progress(done + 1, len(positions), "running the teacher")
    return entries


def _spread_positions(reader: StoreReader, count: int) -> list[tuple[int, int]]:
    """(pass index, position) of the entries to study."""
    total = len(reader.passes) * reader.n_images
    count = min(count, total)
    if count < 2:
        raise UsageError(f"a study needs at least 2 entries, got {count}", hint="--entries 16")
    chosen = (n * total // count for n in range(count))
    return [(reader.passes[n // reader.n_images], n % reader.n_images) for n in chosen]


def _read_entry(
    reader: StoreReader, images: SegmentationDataset, teacher: Teacher, pass_index: int, position: int
) -> StudyEntry:
    entry = reader.entry(pass_index, position)
    index = entry.row.image_index
    crop = entry.crop or replay(entry.row.view, reader.spec.views, images.image(index), images.label(index))
    if reason := compare_digest(entry.row.digest, crop_digest(crop)):
        raise StoreMismatchError(
            f"{reader.image_ids[index]} view {entry.row.view_index}: the crop here differs from the one that the "
            f"teacher saw: {reason}",
            hint=f"use the images and library versions of the store: `kdcache info {redact(reader.url)}` lists them",
        )
    pixels = torch.from_numpy(crop.image)[None].to(teacher.device)
    valid_size = torch.tensor([[crop.height, crop.width]], device=teacher.device)
    return StudyEntry(
        image_id=reader.image_ids[index],
        view_index=entry.row.view_index,
        crop=crop,
        exact={name: target.cpu() for name, target in teacher(pixels, valid_size, reader.targets).items()},
        stored={
            name: reader.codecs[name].decode(torch.from_numpy(codes)[None])
            for name, codes in entry.codes.items()
        },
    )


def _weights(entry: StudyEntry, target: str) -> Tensor:
    """The fraction of every cell that is not padding, (1, h, w) in [0, 1]."""
    crop, shape = entry.crop, entry.exact[target].shape
    return cell_weights(
        torch.tensor([[crop.height, crop.width]]),
        (crop.label.shape[0], crop.label.shape[1]),
        (shape[2], shape[3]),
    )


def _fidelity(
    reader: StoreReader, teacher: Teacher, entries: Sequence[StudyEntry], target: str
) -> dict[str, Any]:
    fidelity = fidelity_of(target, teacher.classifier)
    for entry in entries:
        fidelity.add(entry.exact[target], entry.stored[target], _weights(entry, target))
    size = sum(reader.manifests[index].bytes_by_array[target] for index in reader.passes)
    values = len(reader.passes) * reader.n_images * entries[0].exact[target].numel()
    return {
        "codec": reader.codecs[target].summary(),
        "bytes_per_value": size / values,
        **fidelity.result(),
    }


def sample_of(teacher: Teacher, entries: Sequence[StudyEntry], target: str) -> CalibrationSample:
    """The entries for codecs to be fitted to (every other) and to be measured on."""
    exact = [entry.exact[target] for entry in entries]
    return CalibrationSample(
        target=target,
        fitted=exact[::2],
        held_out=exact[1::2],
        exact=exact[1::2],
        weights=[_weights(entry, target) for entry in entries[1::2]],
        classifier=teacher.classifier,
    )


def _teacher_miou(images: SegmentationDataset, entries: Sequence[StudyEntry]) -> dict[str, float] | None:
    """mIoU of exact and of stored logits on the entries' labels; None if no pixel has a label."""
    classes, found = len(images.classes), {}
    for name in ("exact", "stored"):
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        for entry in entries:
            label = torch.from_numpy(entry.crop.label)
            logits = getattr(entry, name)["logits"]
            enlarged = F.interpolate(logits, size=tuple(label.shape), mode="bilinear")
            confusion += count_confusion(enlarged.argmax(dim=1)[0], label, classes)
        if not confusion.any():
            return None
        found[name] = score_confusion(confusion, images.classes, images=len(entries)).miou
    return found


def _gradient_cosine(
    student: Student, entries: Sequence[StudyEntry], device: torch.device
) -> dict[str, float]:
    batches = [
        target_pair(entries[start : start + GRADIENT_BATCH], device)
        # -1: drop a last batch of a single crop, on which BatchNorm may not train.
        for start in range(0, len(entries) - 1, GRADIENT_BATCH)
    ]
    return gradient_cosines(student.network.to(device), student.normalisation, batches)


def target_pair(entries: Sequence[StudyEntry], device: torch.device) -> TargetPair:
    """The entries stacked to a batch on a device."""
    return TargetPair(
        image=torch.stack([torch.from_numpy(entry.crop.image) for entry in entries]).to(device),
        label=torch.stack([torch.from_numpy(entry.crop.label) for entry in entries]).to(device),
        valid_size=torch.tensor([(entry.crop.height, entry.crop.width) for entry in entries]).to(device),
        exact={name: torch.cat([e.exact[name] for e in entries]).to(device) for name in entries[0].exact},
        stored={name: torch.cat([e.stored[name] for e in entries]).to(device) for name in entries[0].stored},
    )
