"""TeacherDataset: a store as batches for a training loop of your own, read as `kdcache distill` reads it.

    data = TeacherDataset("stores/NAME", ["logits"])
    for batch in data.batches(batch_size=8, steps=1000, device="cuda", workers=4):
        ...

The order depends on the seed and the number of the step alone, so a loop resumes with `start_step`. Crops that are cut
again are compared with the teacher's by their digests. Targets travel as stored codes and are decoded on the device.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from kdcache.cache.errors import UsageError
from kdcache.cache.images.decoded import keep_decoded
from kdcache.cache.storage.host_cache import default_folder
from kdcache.cache.storage.shard_cache import ShardCache
from kdcache.cache.store.reader import StoreReader
from kdcache.distill.config import CROP_CHECKS, DEFAULT_CACHE_LIMIT_BYTES
from kdcache.distill.data.inputs import open_images_of, require_cache_fits
from kdcache.distill.data.loader import DeviceCopier, read_batches
from kdcache.distill.data.order import EntryOrder
from kdcache.distill.data.prefetch import ShardPrefetcher
from kdcache.distill.data.targets import CachedTargets, StoredViews, ViewDataset
from kdcache.distill.losses.processes import count_processes, process_rank


class TeacherBatch(NamedTuple):
    """One process's part of a step, on the device."""

    image: Tensor  # (N, H, W, 3) uint8 RGB, 0 in the padding
    label: Tensor  # (N, H, W) uint8 train ids, 255 in the padding and where a label is missing
    valid_size: Tensor  # (N, 2) int64, height and width of the part that is not padding
    targets: dict[str, Tensor]  # by target, (N, C, h, w) float32, as the codec kept it
    step: int


class TeacherDataset:
    """The complete passes of a store: crops, labels, and what the teacher said about them.

    Args:
        url: the store's folder, or a URL such as s3://bucket/prefix/NAME.
        targets: names of targets to read, "logits", "features", "aux" or "backbone".
        data_root: folder of the dataset, where the store keeps no crops; by default where `kdcache build` looks for it.
        seed: of the order.
        pool_units: units that entries are shuffled across.
        check_crops: which crops that are cut again are compared with the teacher's: "always", "sample" or "off".
        cache_limit_bytes: of this host's disk, for shards of stores that are elsewhere and for decoded images.
        image_cache: where decoded images are kept: "off", "auto" for the host's cache, or a folder.

    Raises:
        StoreNotFoundError: nothing at `url` is a store.
        StoreMismatchError: it lacks one of the targets, or was built from other images than those here.
        IncompleteError: no pass of it is complete yet.
        NotFoundError: the dataset is not where it was looked for.
        UsageError: a value that makes no sense.
    """

    def __init__(
        self,
        url: str,
        targets: Sequence[str],
        *,
        data_root: str = "",
        seed: int = 0,
        pool_units: int = 8,
        check_crops: str = "always",
        cache_limit_bytes: int = DEFAULT_CACHE_LIMIT_BYTES,
        image_cache: str = "auto",
    ) -> None:
        if check_crops not in CROP_CHECKS:
            raise UsageError(f"check_crops is one of {', '.join(CROP_CHECKS)}, not {check_crops!r}")
        self._cache = ShardCache(default_folder(), cache_limit_bytes)
        self.reader = StoreReader(url, targets, crops=True, cache=self._cache)
        self.order = EntryOrder(
            passes=self.reader.passes,
            n_images=self.reader.n_images,
            unit_entries=self.reader.unit_entries,
            pool_units=pool_units,
            seed=seed,
        )
        self._stored = StoredViews(self.reader, self.order, check_crops)
        images = keep_decoded(
            open_images_of(self.reader, data_root), image_cache, limit_bytes=cache_limit_bytes
        )
        self._views = ViewDataset(images, self._stored)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the train ids."""
        return self.reader.spec.dataset.class_names

    @property
    def channels(self) -> dict[str, int]:
        """Channels of the teacher's maps, by target."""
        return {name: self.reader.spec.targets[name].shape[0] for name in self.reader.targets}

    def batches(
        self,
        *,
        batch_size: int,
        steps: int,
        start_step: int = 0,
        device: torch.device | str = "cpu",
        workers: int = 0,
    ) -> Generator[TeacherBatch, None, None]:
        """The batches of steps `start_step` to `steps` - 1; where torch.distributed runs, this process's part of each.

        Args:
            batch_size: crops a step, over all processes.
            workers: processes that read and cut crops; 0 does it between the steps. Workers import the script that
                trains, so that needs `if __name__ == "__main__":`.

        Raises:
            UsageError: the processes cannot share the batch, or the cache cannot hold what is read at once.
            StoreMismatchError: a crop that is not the one that the teacher saw.
            StoreDamagedError: a wrong byte, or a pass that was repaired since the store was opened.
        """
        if batch_size < 1 or batch_size % count_processes():
            raise UsageError(f"{count_processes()} processes cannot share a batch_size of {batch_size}")
        require_cache_fits(self._cache, self._stored, batch_size)
        return self._read(range(start_step, steps), batch_size, torch.device(device), workers)

    def _read(
        self, steps: range, batch_size: int, device: torch.device, workers: int
    ) -> Generator[TeacherBatch, None, None]:
        place = {"rank": process_rank(), "processes": count_processes()}
        shards = self.reader.cached
        views = ViewDataset(self._views.images, self._stored, on_device=device.type == "cuda")
        batches = read_batches(
            views,
            batch_size=batch_size,
            start_step=steps.start,
            workers=workers,
            pin_memory=device.type == "cuda",
            prefetcher=ShardPrefetcher(self._stored, shards, batch_size=batch_size, **place)
            if shards
            else None,
            **place,
        )
        policy = self.reader.spec.views
        copy, decode = DeviceCopier(device, policy), CachedTargets(self.reader.codecs)
        with closing(batches):
            for step in steps:
                for epoch in self.order.epochs_begun_by(step, batch_size):
                    self.reader.require_unchanged(self.order.pass_index(epoch))
                batch = copy(next(batches))
                if workers and device.type == "cpu":
                    batch = batch.clone()  # the workers write this memory again, and you may keep the batch
                yield TeacherBatch(batch.image, batch.label, batch.valid_size, decode(batch), step)
