"""The images of a store that keeps its own crops: names and classes, without the dataset."""

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.errors import NotFoundError
from kdcache.cache.images.classes import CLASS_SETS, ClassSet, colour_map
from kdcache.cache.images.dataset import SegmentationDataset
from kdcache.cache.store.reader import StoreReader


class StoredImages(SegmentationDataset):
    """What a store knows about the dataset that it was built from. It has no whole images, only crops."""

    def __init__(self, reader: StoreReader) -> None:
        stored = reader.spec.dataset
        self.name, self.split, self.image_ids = stored.name, stored.split, reader.image_ids
        self.classes = _class_set(stored.name, stored.class_names)
        self._fingerprint = stored.fingerprint

    def image(self, index: int) -> NDArray[np.uint8]:
        raise self._no_images()

    def label(self, index: int) -> NDArray[np.uint8] | None:
        raise self._no_images()

    def size(self, index: int) -> tuple[int, int]:
        raise self._no_images()

    def fingerprint(self) -> str:
        return self._fingerprint

    def _no_images(self) -> NotFoundError:
        return NotFoundError(
            f"this store keeps only crops of {self.name}, not its whole images",
            hint="--fresh-views and evaluation need the dataset itself: name it with --data-root DIR",
        )


def _class_set(name: str, names: tuple[str, ...]) -> ClassSet:
    """The classes, in their dataset's colours if these are known."""
    known = next((classes for classes in CLASS_SETS.values() if classes.names == names), None)
    return known or ClassSet(name, names, colour_map(len(names)))
