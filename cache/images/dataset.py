"""The interface of datasets: images and labels by index, permanent image ids, a fingerprint."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.images.classes import ClassSet


class SegmentationDataset(ABC):
    """One split of a dataset. Several threads may read from it at once. Its pickle is small: no open files, no pixels.

    Attributes:
        name: as the user typed it, such as "cityscapes" or "streets:96x192:200".
        split: "train", "val", "test", or another split of this dataset.
        classes: names and colours of the train ids.
        image_ids: sorted, unique, and independent of the dataset's folder, because views are drawn from them.
    """

    name: str
    split: str
    classes: ClassSet
    image_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    @abstractmethod
    def image(self, index: int) -> NDArray[np.uint8]:
        """The image, (H, W, 3) uint8 RGB.

        Raises:
            DataError: the file is unreadable.
        """

    @abstractmethod
    def label(self, index: int) -> NDArray[np.uint8] | None:
        """The train ids, (H, W) uint8, IGNORE for pixels without a class; None if the split has no labels.

        Raises:
            DataError: the file is unreadable, differs in size from its image, or contains an invalid value.
        """

    @abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of the image, without decoding it.

        Raises:
            DataError: the file is unreadable.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 in hex of all ids and file sizes. It detects another list of images, or changed files, without
        reading any. Changes that keep the size are detected by the crop digests of a store.

        Raises:
            DataError: a file is missing.
        """

    def stamp(self, index: int) -> str | None:
        """A text that changes whenever a file behind this image or its label does, found without reading any.

        None if the dataset cannot say; then its images are not kept in the host's cache.

        Raises:
            DataError: a file is missing.
        """
        return None
