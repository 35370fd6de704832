"""Crops a second on one core: cut from PNG files, cut from a raw copy of the decoded images, or read from the store; and
the cost of each stage.

A crop is 512x1024 from 2048x1024, with its label, its colours distorted and its digest compared, as a worker of the
loader makes it. The raw copy is a memory map of uint8 with all decoded images and labels, in the page cache like the
files. A stored crop is read from shards on disk, as JPEG or as lossless WebP.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from bench_build import write_images
from harness import Row, alternate, finish, median_ratio

from kdcache.cache.codecs.shards import ArrayLayout
from kdcache.cache.images.datasets import SegmentationDataset
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.store.reader import ShardedArray, read_rows
from kdcache.cache.views.crops import (
    CROPS,
    LABELS,
    crop_packings,
    encode_crop,
    pack_file,
    unpack_crop,
    with_decoded,
)
from kdcache.cache.views.drawing import crop_label, draw_view
from kdcache.cache.views.pixels import distort_colours, resize_image
from kdcache.cache.views.policy import view_policy
from kdcache.cache.views.replay import Crop, CropDigest, compare_digest, crop_digest, replay
from kdcache.cache.views.view import View

SIZE = (1024, 2048)
POLICY = view_policy("cityscapes")


def run(*, quick: bool, as_json: bool) -> int:
    images, rounds = (4, 5) if quick else (16, 9)
    stored_bytes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_images(Path(folder) / "files", SIZE, images)
        bench = Bench.of(dataset, Path(folder))
        sides: dict[str, Callable[[], object]] = {
            "replayed from PNG": bench.replay_files,
            "replayed from a raw copy": bench.replay_raw,
        }
        for inputs in ("jpeg:95", "webp"):
            stored = StoredCrops.of(bench, inputs, Path(folder) / inputs[:4])
            sides[f"stored as {inputs}"] = stored.read
            stored_bytes[inputs] = stored.bytes
        seconds = alternate({**sides, **bench.stages()}, rounds)
        file_bytes = sum(path.stat().st_size for path in (Path(folder) / "files").rglob("*.png"))
        raw_bytes = bench.images.nbytes + bench.labels.nbytes
    whole = seconds["replayed from PNG"]
    label = [sum(parts) for parts in zip(seconds["label: decode"], seconds["label: cut"], strict=True)]
    rows = [Row(f"crops a second a core, {side}", images / median(seconds[side]), "/s") for side in sides]
    rows += [
        Row(f"{side} over replayed from PNG", ratio, "", *((">= 5", ratio >= 5) if "jpeg" in side else ()))
        for side, ratio in ((side, median_ratio(whole, seconds[side])) for side in list(sides)[1:])
    ]
    rows += [
        Row(f"milliseconds a crop, {stage}", 1000 * median(seconds[stage]) / images, "ms")
        for stage in bench.stages()
    ]
    rows += [
        Row("the label's share of a crop from PNG", median_ratio(label, whole), ""),
        Row("bytes an image, PNG and label", file_bytes / images, "B"),
        Row("bytes an image, raw copy", raw_bytes / images, "B"),
        *(Row(f"bytes a view, stored as {name}", size / images, "B") for name, size in stored_bytes.items()),
    ]
    setting = f"{images} crops of 512x1024 from {SIZE[1]}x{SIZE[0]}, {rounds} rounds"
    return finish("datapath", rows, seconds, setting, as_json=as_json)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Images as files and as a raw copy, and one view of each with the digest that a store would contain."""

    dataset: SegmentationDataset
    images: np.ndarray  # (n, H, W, 3) uint8, a memory map
    labels: np.ndarray  # (n, H, W) uint8, a memory map
    views: list[View]
    crops: list[Crop]
    digests: list[CropDigest]

    @classmethod
    def of(cls, dataset: SegmentationDataset, folder: Path) -> "Bench":
        n = len(dataset)
        images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (n, *SIZE, 3))
        labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.uint8, (n, *SIZE))
        views = []
        for index, image_id in enumerate(dataset.image_ids):
            images[index], label = dataset.image(index), dataset.label(index)
            assert label is not None
            labels[index] = label
            views.append(draw_view(POLICY, 0, image_id, 0, SIZE, label))
        crops = [replay(view, POLICY, images[i], labels[i]) for i, view in enumerate(views)]
        digests = [crop_digest(crop) for crop in crops]
        return cls(dataset=dataset, images=images, labels=labels, views=views, crops=crops, digests=digests)

    def replay_files(self) -> None:
        for index, view in enumerate(self.views):
            self.check(index, replay(view, POLICY, self.dataset.image(index), self.dataset.label(index)))

    def replay_raw(self) -> None:
        for index, view in enumerate(self.views):
            self.check(index, replay(view, POLICY, self.images[index], self.labels[index]))

    def check(self, index: int, crop: Crop) -> None:
        assert compare_digest(self.digests[index], crop_digest(crop)) is None

    def stages(self) -> dict[str, Callable[[], object]]:
        """Each stage alone, for all views."""
        boxes = [
            np.asarray(image[v.top : v.top + v.box_height, v.left : v.left + v.box_width])
            for image, v in zip(self.images, self.views, strict=True)
        ]
        resized = [resize_image(box, v.height, v.width) for box, v in zip(boxes, self.views, strict=True)]
        n = range(len(self.views))
        return {
            "image: decode": lambda: [self.dataset.image(i) for i in n],
            "image: resize": lambda: [
                resize_image(boxes[i], self.views[i].height, self.views[i].width) for i in n
            ],
            "image: colours": lambda: [distort(resized[i], self.views[i]) for i in n],
            "label: decode": lambda: [self.dataset.label(i) for i in n],
            "label: cut": lambda: [crop_label(self.views[i], self.labels[i]) for i in n],
            "digest": lambda: [crop_digest(self.crops[i]) for i in n],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredCrops:
    """The same crops and labels in shards on disk, and what they must decode to."""

    arrays: list[ShardedArray]  # crops, labels
    crops: list[Crop]
    digests: list[CropDigest]  # of the decoded crops, as a store with stored inputs keeps them
    bytes: int

    @classmethod
    def of(cls, bench: Bench, inputs: str, folder: Path) -> "StoredCrops":
        packings = crop_packings(POLICY.crop_size)
        files = [encode_crop(inputs, crop) for crop in bench.crops]
        rows = {
            CROPS: np.stack([pack_file(file, packings[CROPS].shape[0]) for file in files]),
            LABELS: np.stack([crop.label for crop in bench.crops]),
        }
        objects = open_objects(str(folder))
        arrays, size = [], 0
        for name, packing in packings.items():
            layout = ArrayLayout.of_packing(name, packing, rows=len(files))
            shard = layout.encode(rows[name])
            objects.put_new(f"{name}/{layout.shard_path(0)}", shard)
            arrays.append(ShardedArray(objects, layout, np.array([len(shard)]), name))
            size += len(shard)
        crops = [with_decoded(crop, file) for crop, file in zip(bench.crops, files, strict=True)]
        return cls(arrays=arrays, crops=crops, digests=[crop_digest(crop) for crop in crops], bytes=size)

    def read(self) -> None:
        for position, crop in enumerate(self.crops):
            files, labels = read_rows(self.arrays, [position])
            read = unpack_crop(files[0], labels[0], (crop.height, crop.width), "a crop")
            assert compare_digest(self.digests[position], crop_digest(read)) is None


def distort(pixels: np.ndarray, view: View) -> np.ndarray:
    return distort_colours(
        pixels,
        brightness_levels=view.brightness_levels,
        contrast_milli=view.contrast_milli,
        saturation_milli=view.saturation_milli,
        hue_degrees=view.hue_degrees,
    )
