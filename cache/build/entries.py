"""Entries on their way into a store: which view is at which position, cut out of its image, and its targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.errors import TeacherError
from kdcache.cache.images.datasets import SegmentationDataset
from kdcache.cache.shuffle import permutation
from kdcache.cache.store.spec import VIEWS, StoreSpec
from kdcache.cache.teachers.teacher import Teacher
from kdcache.cache.views.crops import CROPS, LABELS, REPLAY, encode_crop, pack_file, with_decoded
from kdcache.cache.views.drawing import draw_view
from kdcache.cache.views.maps import cell_weights
from kdcache.cache.views.replay import Crop, crop_digest, entry_row, parse_entry_row, replay


@dataclass(frozen=True, slots=True)
class EntryInputs:
    """The inputs of an entry that a store keeps."""

    row: np.ndarray  # (columns,) int32
    file: bytes = b""  # the encoded crop, if the store keeps crops
    label: np.ndarray | None = None  # (H, W) uint8, if the store keeps crops


@dataclass(frozen=True, slots=True)
class CutEntry:
    """One view, cut out: its inputs, and its crop as a reader of the store will see it."""

    inputs: EntryInputs
    crop: Crop

    @property
    def row(self) -> np.ndarray:
        return self.inputs.row


@lru_cache(maxsize=8)
def pass_order(seed: int, pass_index: int, n_images: int) -> np.ndarray:
    """The image index at each position of a pass, (n_images,) int64."""
    return permutation(f"{seed} pass {pass_index}", n_images)


def cut_entry(dataset: SegmentationDataset, spec: StoreSpec, pass_index: int, position: int) -> CutEntry:
    """The entry at a position of a pass: its image is decoded, its view drawn and cut out."""
    index = int(pass_order(spec.seed, pass_index, spec.dataset.images)[position])
    image, label = dataset.image(index), dataset.label(index)
    view = draw_view(spec.views, spec.seed, dataset.image_ids[index], pass_index, image.shape[:2], label)
    crop = replay(view, spec.views, image, label)
    if spec.inputs == REPLAY:
        return CutEntry(EntryInputs(entry_row(index, pass_index, view, crop_digest(crop))), crop)
    file = encode_crop(spec.inputs, crop)
    crop = with_decoded(crop, file)  # before the digest: the teacher and the student see what JPEG leaves
    row = entry_row(index, pass_index, view, crop_digest(crop))
    return CutEntry(EntryInputs(row, file, crop.label), crop)


def input_rows(spec: StoreSpec, inputs: Sequence[EntryInputs]) -> dict[str, np.ndarray]:
    """The rows of all arrays of inputs, (n, ...) each: views, then stored crops and labels if there are any."""
    rows = {VIEWS: np.stack([entry.row for entry in inputs])}
    if packings := spec.crop_packings:
        (longest,) = packings[CROPS].shape
        rows[CROPS] = np.stack([pack_file(entry.file, longest) for entry in inputs])
        rows[LABELS] = np.stack([entry.label for entry in inputs if entry.label is not None])
    return rows


def run_teacher(
    teacher: Teacher, entries: Sequence[CutEntry], batch_size: int, targets: Sequence[str]
) -> dict[str, Tensor]:
    """The targets (n, C, h, w) float32 of the entries, n <= batch_size."""
    # Padded to full size: kernels for another batch size round differently.
    padded = [*entries, *[entries[-1]] * (batch_size - len(entries))]
    crops = torch.from_numpy(np.stack([entry.crop.image for entry in padded]))
    valid_size = valid_sizes(padded)
    outputs = teacher(
        crops.to(teacher.device, non_blocking=True), valid_size.to(teacher.device, non_blocking=True), targets
    )
    return {name: outputs[name][: len(entries)] for name in targets}


def valid_sizes(entries: Sequence[CutEntry]) -> Tensor:
    """Height and width of the part that is not padding, (n, 2) int64, in pixels."""
    return torch.tensor([(entry.crop.height, entry.crop.width) for entry in entries])


def entry_weights(entries: Sequence[CutEntry], map_size: tuple[int, int]) -> Tensor:
    """The part of each cell of the entries' maps that is not padding, (n, h, w) float32."""
    height, width = entries[0].crop.label.shape
    return cell_weights(valid_sizes(entries), (height, width), map_size)


def require_finite(
    target: Tensor,  # (n, C, h, w)
    entries: Sequence[CutEntry],
    image_ids: Sequence[str],
    name: str,
) -> None:
    """Raises TeacherError, which names target and image, for NaN or infinity."""
    for row in (~torch.isfinite(target).flatten(1).all(dim=1)).nonzero().flatten().tolist():
        image = image_ids[parse_entry_row(entries[row].row).image_index]
        raise TeacherError(
            f"the teacher's {name} for image {image} are not finite", hint="check the weights and --precision"
        )
