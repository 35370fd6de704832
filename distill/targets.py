"""Batches: the crops of a step, their labels, and what the teacher said about them.

    stream position t -> view (of the store, or drawn anew) -> crop, cut again here -> batch -> targets on the device

Crops are cut in worker processes from the parameters of their view and compared with the digest that the store keeps
of the teacher's crop. Targets travel as stored codes, which are small, and become float32 on the training device.
Where they come from is an interface: CachedTargets decodes codes, OnlineTargets asks the teacher, both are called
with the batch alone.

The order of the stream is a function of the seed (order.EntryOrder) and a batch is an interval of it, so one loader
serves a whole run, nothing has to be remembered between steps, and resuming needs only the number of the step.
"""

import multiprocessing
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.context import BaseContext
from threading import Thread
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdcache.cache.codecs import Codec
from kdcache.cache.datasets import SegmentationDataset
from kdcache.cache.errors import DataError, KDCacheError, StoreMismatchError, TrainingError
from kdcache.cache.reader import StoreReader
from kdcache.cache.replay import Crop, EntryRow, compare_digest, crop_digest, replay
from kdcache.cache.teacher import Teacher
from kdcache.cache.views import ViewPolicy, draw_view
from kdcache.distill.config import CROP_CHECKS
from kdcache.distill.order import EntryOrder, FreshOrder

BATCHES_AHEAD = 2  # a worker; memory in flight is workers x BATCHES_AHEAD x the bytes of a batch


class Batch(NamedTuple):
    """One process's part of a step."""

    image: Tensor  # (N, H, W, 3) uint8 RGB, 0 in the padding
    label: Tensor  # (N, H, W) uint8 train ids, 255 in the padding and where there is no label
    valid: Tensor  # (N, 2) int64, height and width of the part that is not padding
    codes: dict[str, Tensor]  # by target, (N, C, h, w) as stored; empty where nothing is read from a store

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; from pinned memory the copy does not wait."""
        image, label, valid = (tensor.to(device, non_blocking=True) for tensor in self[:3])
        codes = {name: tensor.to(device, non_blocking=True) for name, tensor in self.codes.items()}
        return Batch(image, label, valid, codes)


class Targets(Protocol):
    """What the loop asks for the teacher's outputs."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """By target, (N, C, h, w) float32 on the batch's device."""


@dataclass(frozen=True, slots=True)
class CachedTargets:
    """The teacher's outputs as the store kept them, within the codec's stated error."""

    codecs: Mapping[str, Codec]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        return {name: self.codecs[name].decode(codes) for name, codes in batch.codes.items()}


@dataclass(frozen=True, slots=True)
class OnlineTargets:
    """The teacher's outputs, computed for this batch: the yardstick of every claim about the cache."""

    teacher: Teacher
    needs: tuple[str, ...]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        return self.teacher(batch.image, batch.valid, self.needs)


class ViewSource(Protocol):
    """Which view stands at a position of the stream. Travels to worker processes, so it opens its files lazily."""

    def cut(self, t: int, images: SegmentationDataset) -> tuple[Crop, dict[str, np.ndarray]]:
        """The crop at position t and the codes of its targets."""

    def describe(self, t: int, images: SegmentationDataset) -> str:
        """The entry at position t, in words."""


@dataclass(frozen=True, slots=True)
class StoredViews:
    """The views of a store, in the order of the run: stored crops, or crops cut again, checked to be the teacher's."""

    reader: StoreReader
    order: EntryOrder
    check_crops: str = "always"
    """A key of config.CROP_CHECKS."""

    def cut(self, t: int, images: SegmentationDataset) -> tuple[Crop, dict[str, np.ndarray]]:
        """Raises StoreMismatchError where the crop is not the one that the teacher saw."""
        entry = self.reader.entry(*self.order.entry(t))
        crop = entry.crop or self._replay(t, entry.row, images)
        every = CROP_CHECKS[self.check_crops]
        if every and t % every == 0:
            self._check(t, entry.row, crop, images)
        return crop, entry.codes

    def describe(self, t: int, images: SegmentationDataset) -> str:
        pass_index, position = self.order.entry(t)
        image_id = images.image_ids[self.reader.entry(pass_index, position).row.image_index]
        return f"{image_id} view {pass_index} (entry {pass_index * self.reader.n_images + position})"

    def _replay(self, t: int, row: EntryRow, images: SegmentationDataset) -> Crop:
        image, label = images.image(row.image_index), images.label(row.image_index)
        try:
            return replay(row.view, self.reader.spec.views, image, label)
        except DataError as error:
            raise self._mismatch(t, images, str(error)) from None

    def _check(self, t: int, row: EntryRow, crop: Crop, images: SegmentationDataset) -> None:
        if reason := compare_digest(row.digest, crop_digest(crop)):
            raise self._mismatch(t, images, reason)

    def _mismatch(self, t: int, images: SegmentationDataset, reason: str) -> StoreMismatchError:
        return StoreMismatchError(
            f"{self.describe(t, images)}: the crop cut here is not the one that the teacher saw: {reason}",
            hint="train with the images and library versions that the store was built with; `kdcache info` has them",
        )


@dataclass(frozen=True, slots=True)
class FreshViews:
    """New views for ever: epoch k draws view k of every image."""

    policy: ViewPolicy
    order: FreshOrder
    seed: int

    def cut(self, t: int, images: SegmentationDataset) -> tuple[Crop, dict[str, np.ndarray]]:
        view_index, index = self.order.entry(t)
        image, label = images.image(index), images.label(index)
        height, width = image.shape[:2]
        view = draw_view(self.policy, self.seed, images.image_ids[index], view_index, (height, width), label)
        return replay(view, self.policy, image, label), {}

    def describe(self, t: int, images: SegmentationDataset) -> str:
        view_index, index = self.order.entry(t)
        return f"{images.image_ids[index]} view {view_index}"


@dataclass(frozen=True, slots=True)
class Failure:
    """An error on its way out of a worker. torch would raise a copy of it with a traceback for a message."""

    error: KDCacheError


class ViewDataset(Dataset[Batch | Failure]):
    """The stream as a torch dataset: an index is a position t, an item a batch of one."""

    def __init__(self, images: SegmentationDataset, views: ViewSource) -> None:
        self.images = images
        self.views = views

    def __getitem__(self, t: int) -> Batch | Failure:
        try:
            crop, codes = self.views.cut(t, self.images)
        except KDCacheError as error:
            return Failure(error)
        return Batch(
            image=torch.from_numpy(crop.image)[None],
            label=torch.from_numpy(crop.label)[None],
            valid=torch.tensor([[crop.height, crop.width]]),
            codes={name: torch.from_numpy(array)[None] for name, array in codes.items()},
        )

    def describe(self, positions: Sequence[int]) -> str:
        """Entries in words, for a message: image ids and views."""
        return ", ".join(self.views.describe(t, self.images) for t in positions)


def read_batches(
    dataset: ViewDataset,
    *,
    batch_size: int,
    start_step: int,
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """This process's batches from step `start_step` on, without end; close the iterator to stop the workers.

    Raises:
        KDCacheError: as it was raised where the crop was cut.
        TrainingError: a worker process died.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=_RankBatches(batch_size, start_step, rank, processes),
        collate_fn=_collate,
        num_workers=workers,
        prefetch_factor=BATCHES_AHEAD if workers else None,
        multiprocessing_context=_worker_context() if workers else None,
        worker_init_fn=_end_with_parent,
        pin_memory=pin_memory,
    )  # a worker of torch's runs on one thread, so cutting crops and the student do not fight over cores
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"a process that reads crops died: {str(error).splitlines()[0]}",
                hint="most often memory or /dev/shm ran out: fewer --workers, or 0; then --resume",
            ) from None
        if isinstance(batch, Failure):
            raise batch.error
        yield batch


@dataclass(frozen=True, slots=True)
class _RankBatches:
    """Sampler: positions [s B + rank b, s B + (rank + 1) b) for steps s = start, start + 1, ..., with b = B / processes."""

    batch_size: int
    start_step: int
    rank: int
    processes: int

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.processes
        for step in count(self.start_step):
            first = step * self.batch_size + self.rank * share
            yield list(range(first, first + share))


def _worker_context() -> BaseContext:
    # A fork of a process that runs threads (autograd's, a store's) can hang. The fork server runs none; it imports
    # torch once for all workers, where spawned ones would each take seconds for it.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _end_with_parent(worker: int) -> None:
    # torch's own watch looks at the parent process id: a worker's is the fork server, which lives while workers do.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _collate(items: Sequence[Batch | Failure]) -> Batch | Failure:
    batches: list[Batch] = []
    for item in items:
        if isinstance(item, Failure):
            return item
        batches.append(item)
    image, label, valid = (torch.cat(tensors) for tensors in list(zip(*batches, strict=True))[:3])
    codes = {name: torch.cat([batch.codes[name] for batch in batches]) for name in batches[0].codes}
    return Batch(image, label, valid, codes)
