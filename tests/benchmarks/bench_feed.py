"""Processor milliseconds of a host for one training crop, up to where a device takes over.

A crop of 512x1024 from images of 1024x2048 with logits and features, as a loader's worker makes it into shared memory
that is used again: the box of its view out of decoded images in the host's cache (the device then makes the crop), the
whole crop on the processor as a CPU's runs need it, from PNG files, or as JPEG out of the store.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from bench_build import random_teacher, write_images
from harness import Row, finish

from kdcache.cache.build.build import build_store, plan_store
from kdcache.cache.build.builder import BuildOptions
from kdcache.cache.images.datasets import SegmentationDataset
from kdcache.cache.images.decoded import DecodedImages
from kdcache.cache.storage.host_cache import HostCache
from kdcache.cache.store.opening import create_store
from kdcache.cache.store.reader import StoreReader
from kdcache.cache.store.stored_images import StoredImages
from kdcache.cache.teachers.teacher import Teacher
from kdcache.cache.views.policy import view_policy
from kdcache.distill.data.order import EntryOrder
from kdcache.distill.data.slots import Slot
from kdcache.distill.data.targets import StoredViews, ViewDataset

BATCH = 8
TARGETS = ("logits", "features")


def run(*, quick: bool, as_json: bool) -> int:
    images, rounds = (8, 5) if quick else (32, 9)
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(Path(folder) / "images", (1024, 2048), images)
        teacher = random_teacher("pspnet_resnet18", len(files.classes.names), Path(folder))
        decoded = DecodedImages(files, HostCache(Path(folder) / "cache", 10**10))
        replayed = build(decoded, teacher, f"{folder}/replayed", "replay")
        stored = build(decoded, teacher, f"{folder}/stored", "jpeg")
        sides = {
            "boxes of decoded images, for a device": stream(decoded, replayed, on_device=True, check="off"),
            "the same, every 16th crop checked": stream(decoded, replayed, on_device=True, check="sample"),
            "crops of decoded images, on the processor": stream(decoded, replayed, check="always"),
            "crops of PNG files": stream(files, replayed, check="always"),
            "stored JPEG": stream(StoredImages(stored), stored, check="off"),
        }
        seconds = measure(sides, images, rounds)
        copy = copy_ratio(sides["crops of decoded images, on the processor"], rounds)
    milliseconds = {side: 1000 * statistics.median(each) for side, each in seconds.items()}
    bounds = {"boxes of decoded images, for a device": 3.0, "stored JPEG": 10.0}
    rows = [
        Row(f"a crop: {side}", value, "ms", *bounded(value, bounds.get(side)))
        for side, value in milliseconds.items()
    ]
    rows += [Row("a batch into a slot over a plain copy of its bytes", copy, "", *bounded(copy, 2.0))]
    setting = f"processor time; {images} images, batches of {BATCH}, {rounds} rounds, codecs " + ", ".join(
        codec.name for codec in replayed.codecs.values()
    )
    return finish("feed", rows, seconds, setting, as_json=as_json)


def bounded(value: float, limit: float | None) -> tuple[str, bool] | tuple[()]:
    return () if limit is None else (f"<= {limit:g}", value <= limit)


def build(images: SegmentationDataset, teacher: Teacher, url: str, inputs: str) -> StoreReader:
    """A store of one view with the default codecs."""
    targets = dict.fromkeys(TARGETS, "auto:0.001")
    policy = view_policy("cityscapes")
    spec = plan_store(images, teacher, policy, seed=0, targets=targets, inputs=inputs)
    store = create_store(url, spec, images.image_ids)
    build_store(store, images, teacher, passes=1, options=BuildOptions(batch_size=2, force=True))
    return StoreReader(url, TARGETS, crops=inputs != "replay")


def stream(
    images: SegmentationDataset, reader: StoreReader, *, check: str, on_device: bool = False
) -> ViewDataset:
    order = EntryOrder(
        passes=(0,), n_images=reader.n_images, unit_entries=reader.unit_entries, pool_units=8, seed=0
    )
    return ViewDataset(images, StoredViews(reader, order, check), on_device=on_device)


def measure(sides: dict[str, ViewDataset], images: int, rounds: int) -> dict[str, list[float]]:
    """Processor seconds a crop, in alternating rounds over all images, after one to warm up."""
    torch.set_num_threads(1)
    slots = {side: Slot.create() for side in sides}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side, dataset in sides.items():
            began = time.process_time()
            for start in range(0, images, BATCH):
                slots[side].write(dataset.batch_fields(range(start, start + BATCH)))
            if turn:
                seconds[side].append((time.process_time() - began) / images)
    return seconds


def copy_ratio(dataset: ViewDataset, rounds: int) -> float:
    """What stacking a batch into memory that is there takes over copying its bytes there."""
    fields = dataset.batch_fields(range(BATCH))
    stacked = {name: torch.stack(list(tensors)) for name, tensors in fields.items()}  # type: ignore[arg-type]
    slot, target = Slot.create(), {name: tensor.clone() for name, tensor in stacked.items()}
    slot.write(fields)

    def plain() -> None:
        for name, tensor in stacked.items():
            target[name].copy_(tensor)

    return statistics.median(
        seconds_of(lambda: slot.write(fields)) / seconds_of(plain) for _ in range(10 * rounds)
    )


def seconds_of(work: Callable[[], object], calls: Sequence[int] = range(3)) -> float:
    began = time.process_time()
    for _ in calls:
        work()
    return time.process_time() - began
