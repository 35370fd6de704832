"""Batches: the crops of a step, their labels, and the teacher's outputs for them.

    stream position t -> view (from the store, or drawn fresh) -> crop, cut again here -> batch -> targets on the device

The loader's workers cut each crop from the parameters of its view and compare it with the store's digest of the crop
that the teacher saw. Targets travel as stored codes, which are small, and become float32 on the training device.
CachedTargets and OnlineTargets have one interface, so that the loop does not know where targets come from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.codecs.registry import Codec
from kdcache.cache.errors import StoreMismatchError
from kdcache.cache.images.datasets import SegmentationDataset
from kdcache.cache.storage.urls import redact
from kdcache.cache.store.reader import Entry, StoreReader
from kdcache.cache.teachers.teacher import Teacher
from kdcache.cache.views.device_replay import Boxes, box_bytes, box_rows, copy_boxes, replay_boxes
from kdcache.cache.views.drawing import draw_view
from kdcache.cache.views.policy import ViewPolicy
from kdcache.cache.views.replay import Crop, EntryRow, compare_digest, crop_digest, replay
from kdcache.cache.views.view import View
from kdcache.distill.config import CROP_CHECKS
from kdcache.distill.data.order import EntryOrder, FreshOrder
from kdcache.distill.data.slots import Block, Field

_CODES = "codes."
_NOT_MADE = torch.empty(0, dtype=torch.uint8)  # a crop that the device will make


class Batch(NamedTuple):
    """One process's part of a step. Before stacking, a single entry has the same fields without the axis N."""

    image: Tensor  # (N, H, W, 3) uint8 RGB, 0 in the padding
    label: Tensor  # (N, H, W) uint8 train ids, 255 in the padding and for void
    valid_size: Tensor  # (N, 2) int64, height and width without the padding, which is at the bottom and right
    codes: dict[str, Tensor]  # by target, (N, C, h, w) as stored; empty if no targets are read from a store
    boxes: Boxes | None = None  # instead of image and label, which the device makes of them

    def fields(self) -> dict[str, Tensor]:
        """The tensors by name, those of targets as "codes.NAME"."""
        fields = {f"{_CODES}{name}": tensor for name, tensor in self.codes.items()}
        if self.boxes is not None:
            return {"boxes": self.boxes.buffer, "rows": self.boxes.rows, **fields}
        return {"image": self.image, "label": self.label, "valid_size": self.valid_size, **fields}

    @classmethod
    def of_fields(cls, fields: Mapping[str, Tensor]) -> "Batch":
        """The inverse of `fields`."""
        codes = {name.removeprefix(_CODES): t for name, t in fields.items() if name.startswith(_CODES)}
        if "boxes" in fields:
            boxes = Boxes(fields["boxes"], fields["rows"])
            return cls(_NOT_MADE, _NOT_MADE, boxes.valid_size, codes, boxes)
        return cls(fields["image"], fields["label"], fields["valid_size"], codes)

    def clone(self) -> "Batch":
        """A copy in memory of its own, for what a loader's workers write again."""
        return Batch.of_fields({name: tensor.clone() for name, tensor in self.fields().items()})

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`. From pinned memory, this returns before the copy is done."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.fields().items()}
        return Batch.of_fields(moved)

    def replayed(self, policy: ViewPolicy) -> "Batch":
        """The batch with its crops made from the boxes, on the device of the boxes. Does not wait for the device."""
        if self.boxes is None:
            return self
        image, label, valid_size = replay_boxes(self.boxes, policy)
        return Batch(image, label, valid_size, self.codes)


class Targets(Protocol):
    """A source of the teacher's outputs."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's outputs for a batch, by target, (N, C, h, w) float32 on the batch's device."""


@dataclass(frozen=True, slots=True)
class CachedTargets:
    """The teacher's outputs, decoded from the codes of a store: exact within the codec's stated error."""

    codecs: Mapping[str, Codec]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        return {name: self.codecs[name].decode(codes) for name, codes in batch.codes.items()}


@dataclass(frozen=True, slots=True)
class OnlineTargets:
    """The teacher's outputs, computed for this batch. The cache is compared with this."""

    teacher: Teacher
    needs: tuple[str, ...]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        return self.teacher(batch.image, batch.valid_size, self.needs)


class ViewedImage(NamedTuple):
    """A view and the image that it is cut from, with the codes of its targets."""

    view: View
    image: np.ndarray  # (H, W, 3) uint8 RGB
    label: np.ndarray | None  # (H, W) uint8 train ids
    codes: dict[str, np.ndarray]  # (C, h, w) by target


class ViewSource(Protocol):
    """The views of the stream by position. It travels to worker processes, so it opens its files lazily."""

    @property
    def policy(self) -> ViewPolicy:
        """Of all its views."""

    @property
    def has_images(self) -> bool:
        """True if crops are cut from images, which a device can do; False if they are stored."""

    def view_images(self, positions: Sequence[int], images: SegmentationDataset) -> Iterator[ViewedImage]:
        """What the crops at some positions are cut from. Crops that are due for it are cut here too, and checked."""

    def cut(
        self, positions: Sequence[int], images: SegmentationDataset
    ) -> Iterator[tuple[Crop, dict[str, np.ndarray]]]:
        """The crops at some positions of the stream, each with the codes of its targets, (C, h, w) by target."""

    def describe(self, t: int, images: SegmentationDataset) -> str:
        """The entry at position t, in words, for messages."""


@dataclass(frozen=True, slots=True)
class StoredViews:
    """The views of a store in the order of a run. Crops are read if they are stored, else cut again and checked."""

    reader: StoreReader
    order: EntryOrder
    check_crops: str = "always"
    """A key of config.CROP_CHECKS."""
    checked_until: int = 0
    """All crops before this position are checked, whatever `check_crops` says: those of a run's first batch."""

    @property
    def policy(self) -> ViewPolicy:
        return self.reader.spec.views

    @property
    def has_images(self) -> bool:
        return not self.reader.has_crops

    def view_images(self, positions: Sequence[int], images: SegmentationDataset) -> Iterator[ViewedImage]:
        """See ViewSource. Raises StoreMismatchError if a crop that was checked differs from the teacher's."""
        for t, entry in zip(positions, self._entries(positions), strict=True):
            viewed = self._view_image(entry, images)
            if self._is_checked(t):
                self._check(t, entry.row, self._replay(t, viewed, images), images)
            yield viewed

    def cut(
        self, positions: Sequence[int], images: SegmentationDataset
    ) -> Iterator[tuple[Crop, dict[str, np.ndarray]]]:
        """See ViewSource. Raises StoreMismatchError if a crop differs from the one that the teacher saw."""
        for t, entry in zip(positions, self._entries(positions), strict=True):
            crop = entry.crop or self._replay(t, self._view_image(entry, images), images)
            if self._is_checked(t):
                self._check(t, entry.row, crop, images)
            yield crop, entry.codes

    def _is_checked(self, t: int) -> bool:
        every = CROP_CHECKS[self.check_crops]
        return bool(every) and (t % every == 0 or t < self.checked_until)

    def _entries(self, positions: Sequence[int]) -> list[Entry]:
        """All entries in one read a pass: usually one, and two if an epoch ends inside the batch."""
        entries: list[Entry] = []
        for pass_index, places in groupby(map(self.order.entry, positions), key=itemgetter(0)):
            entries += self.reader.entries(pass_index, [position for _, position in places])
        return entries

    def describe(self, t: int, images: SegmentationDataset) -> str:
        pass_index, position = self.order.entry(t)
        image_id = images.image_ids[self.reader.entry(pass_index, position).row.image_index]
        return f"{image_id} view {pass_index} (entry {pass_index * self.reader.n_images + position})"

    def _view_image(self, entry: Entry, images: SegmentationDataset) -> ViewedImage:
        index = entry.row.image_index
        return ViewedImage(entry.row.view, images.image(index), images.label(index), entry.codes)

    def _replay(self, t: int, viewed: ViewedImage, images: SegmentationDataset) -> Crop:
        try:
            return replay(viewed.view, self.policy, viewed.image, viewed.label)
        except StoreMismatchError as error:
            raise self._mismatch(t, images, str(error)) from None

    def _check(self, t: int, row: EntryRow, crop: Crop, images: SegmentationDataset) -> None:
        if reason := compare_digest(row.digest, crop_digest(crop)):
            raise self._mismatch(t, images, reason)

    def _mismatch(self, t: int, images: SegmentationDataset, reason: str) -> StoreMismatchError:
        return StoreMismatchError(
            f"{self.describe(t, images)}: the crop cut here differs from the one that the teacher saw: {reason}",
            hint=f"use the images and library versions of the store: `kdcache info {redact(self.reader.url)}` lists them",
        )


@dataclass(frozen=True, slots=True)
class FreshViews:
    """Fresh views: epoch k draws view k of every image."""

    policy: ViewPolicy
    order: FreshOrder
    seed: int

    @property
    def has_images(self) -> bool:
        return True

    def view_images(self, positions: Sequence[int], images: SegmentationDataset) -> Iterator[ViewedImage]:
        for view_index, index in map(self.order.entry, positions):
            image, label = images.image(index), images.label(index)
            size = image.shape[0], image.shape[1]
            view = draw_view(self.policy, self.seed, images.image_ids[index], view_index, size, label)
            yield ViewedImage(view, image, label, {})

    def cut(
        self, positions: Sequence[int], images: SegmentationDataset
    ) -> Iterator[tuple[Crop, dict[str, np.ndarray]]]:
        for view, image, label, codes in self.view_images(positions, images):
            yield replay(view, self.policy, image, label), codes

    def describe(self, t: int, images: SegmentationDataset) -> str:
        view_index, index = self.order.entry(t)
        return f"{images.image_ids[index]} view {view_index}"


class ViewDataset:
    """The stream by position: a position t is one entry of a batch. Travels to worker processes.

    Args:
        on_device: the device makes the crops, so that only boxes of pixels travel; for views that are cut from images.
    """

    def __init__(self, images: SegmentationDataset, views: ViewSource, *, on_device: bool = False) -> None:
        self.images = images
        self.views = views
        self.on_device = on_device and views.has_images

    def checking(self, until: int) -> "ViewDataset":
        """The same, with all crops before a position checked: those of the first batch of a run."""
        if not isinstance(self.views, StoredViews):
            return self
        return ViewDataset(self.images, replace(self.views, checked_until=until), on_device=self.on_device)

    def batch_fields(self, positions: Sequence[int]) -> Mapping[str, Field]:
        """The fields of a Batch with the entries at some positions, which are read together.

        Raises:
            KDCacheError: an entry is unreadable, or its crop differs from the one that the teacher saw.
        """
        if self.on_device:
            return self._box_fields(positions)
        stacks: dict[str, list[Tensor]] = {}
        for entry in self.entries(positions):
            for name, tensor in entry.fields().items():
                stacks.setdefault(name, []).append(tensor)
        return stacks

    def _box_fields(self, positions: Sequence[int]) -> Mapping[str, Field]:
        views, images, labels, codes = zip(*self.views.view_images(positions, self.images), strict=True)
        return {
            "boxes": Block(4 * box_bytes(views), lambda buffer: copy_boxes(views, images, labels, buffer)),
            "rows": list(box_rows(views, self.views.policy, images, labels)),
            **{f"{_CODES}{name}": [torch.from_numpy(each[name]) for each in codes] for name in codes[0]},
        }

    def entries(self, positions: Sequence[int]) -> list[Batch]:
        """The entries at some positions, each without a first axis. Raises as `batch_fields`."""
        return [
            Batch(
                image=torch.from_numpy(crop.image),
                label=torch.from_numpy(crop.label),
                valid_size=torch.tensor([crop.height, crop.width]),
                codes={name: torch.from_numpy(array) for name, array in codes.items()},
            )
            for crop, codes in self.views.cut(positions, self.images)
        ]

    def __getitem__(self, t: int) -> Batch:
        return self.entries([t])[0]

    def describe(self, positions: Sequence[int]) -> str:
        """The entries at some positions in words, for messages: image ids and views."""
        return ", ".join(self.views.describe(t, self.images) for t in positions)
