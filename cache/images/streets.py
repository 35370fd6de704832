"""`streets`: street scenes that the program draws itself, so that everything can be tried without a download.

streets[:HxW[:COUNT[:SEED]]]        for example streets:96x192:200; by default 256x512 and 400 images
"""

import hashlib
import re

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.errors import UsageError
from kdcache.cache.images.classes import CITYSCAPES_19
from kdcache.cache.images.dataset import SegmentationDataset
from kdcache.cache.images.scene import draw_scene

DRAWING_VERSION = 1  # part of the fingerprint: raise it with any change that changes a pixel
DEFAULT_SIZE_PX = (256, 512)
DEFAULT_IMAGES = 400


class Streets(SegmentationDataset):
    """The splits are `train`, with the number of images asked for, and `val`, with a quarter of that but at least 8.

    Raises:
        UsageError: a malformed name, a size below 32x64 or above 4096x4096, an unknown split.
    """

    def __init__(self, name: str, split: str) -> None:
        (self.height_px, self.width_px), images, self.seed = parse_name(name)
        counts = {"train": images, "val": max(images // 4, 8)}
        if split not in counts:
            raise UsageError(f"streets has no split {split!r}", hint=f"one of: {', '.join(counts)}")
        self.name, self.split, self.classes = name, split, CITYSCAPES_19
        self.image_ids = tuple(f"{split}_{index:05d}" for index in range(counts[split]))

    def image(self, index: int) -> NDArray[np.uint8]:
        return self._scene(index)[0].copy()  # the original is in a cache; a caller may change its copy

    def label(self, index: int) -> NDArray[np.uint8]:
        return self._scene(index)[1].copy()

    def size(self, index: int) -> tuple[int, int]:
        return self.height_px, self.width_px

    def fingerprint(self) -> str:
        what = (DRAWING_VERSION, self.height_px, self.width_px, self.seed, self.split, len(self.image_ids))
        return hashlib.sha256(repr(what).encode()).hexdigest()

    def _scene(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return draw_scene(self.height_px, self.width_px, f"{self.seed} {self.image_ids[index]}")


def parse_name(name: str) -> tuple[tuple[int, int], int, int]:
    """(height, width), number of images and seed from a name such as "streets:96x192:200:1". Raises UsageError."""
    match = re.fullmatch(r"streets(?::(\d{1,5})x(\d{1,5})(?::(\d{1,7})(?::(\d{1,9}))?)?)?", name)
    if match is None:
        raise UsageError(
            f"malformed dataset name {name!r}",
            hint="streets, streets:HxW, streets:HxW:COUNT or streets:HxW:COUNT:SEED",
        )
    height, width, images, seed = (None if group is None else int(group) for group in match.groups())
    size = (height, width) if height is not None and width is not None else DEFAULT_SIZE_PX
    if size[0] < 32 or size[1] < 64 or max(size) > 4096:
        raise UsageError(
            f"{name}: the size must be from 32x64 to 4096x4096", hint="for example streets:96x192"
        )
    if images == 0:
        raise UsageError(f"{name}: the count must be at least 1", hint="for example streets:96x192:200")
    return size, DEFAULT_IMAGES if images is None else images, seed or 0
