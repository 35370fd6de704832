"""What the package asks of a dataset: images and labels by index, ids that last, a fingerprint."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.images.classes import ClassSet


class SegmentationDataset(ABC):
    """One split of a dataset. Threads may read from it together; pickled it is small, without files or pixels.

    Attributes:
        name: as the user typed it, "cityscapes" or "streets:96x192:200".
        split: "train", "val", "test", or what else the dataset has.
        classes: names and colours of the train ids.
        image_ids: sorted, unique, the same wherever the dataset stands; a view is drawn from them.
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
            DataError: the file cannot be read.
        """

    @abstractmethod
    def label(self, index: int) -> NDArray[np.uint8] | None:
        """The train ids, (H, W) uint8, IGNORE where a pixel has none; None where the split has no labels.

        Raises:
            DataError: the file cannot be read, has another size than its image, or a value that is no class.
        """

    @abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of the image, without decoding it.

        Raises:
            DataError: the file cannot be read.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 in hex over ids and sizes in bytes: another list of images or a changed file, found without
        reading one. What it cannot see, the crop digests of the store do.

        Raises:
            DataError: a file is gone.
        """
