"""A dataset of image files in one folder and label files with the same ids in another.

Every layout in datasets.py is such a dataset. torchvision's Cityscapes and VOCSegmentation are not used, because nearly
all of the work would remain: Cityscapes lists files in the order of the file system and returns raw label ids; neither
has image ids, notices a missing label before it is read, or names the folder that is missing.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.errors import DataError
from kdcache.cache.images.classes import IGNORE, ClassSet
from kdcache.cache.images.dataset import SegmentationDataset
from kdcache.cache.images.files import read_image, read_label, read_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MAX_FILE_CLASSES = 254

_OUTSIDE = 254  # marks an invalid value in a label map; class ids are smaller


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one kind: their folder, and for each id the ending of its file name."""

    folder: Path
    endings: Mapping[str, str]

    def path(self, image_id: str) -> Path:
        """Path of the file of an id."""
        return self.folder / (image_id + self.endings[image_id])

    def only(self, image_ids: Iterable[str]) -> "Listing":
        """The files of some ids, in that order. Raises KeyError for an id that is not listed."""
        return Listing(self.folder, {image_id: self.endings[image_id] for image_id in image_ids})


def list_files(folder: Path, suffixes: Iterable[str], *, nested: bool = False) -> Listing:
    """The files of a folder whose names end in one of the suffixes, in upper or lower case. Hidden files are skipped.

    With `nested`, the files of its subfolders. An id is the name without the suffix; nested, "ulm/ulm_000000_000019".

    Raises:
        DataError: the folder is unreadable, or two files have the same id.
    """
    endings: dict[str, str] = {}
    known = tuple(suffixes)
    for name in _names(folder, nested):
        suffix = next((s for s in known if name.lower().endswith(s.lower())), None)
        if suffix is None:
            continue
        # Interned, because a list of files has one or two different endings and up to a million names.
        image_id, ending = name[: -len(suffix)], sys.intern(name[-len(suffix) :])
        if image_id in endings:
            raise DataError(
                f"{folder / (image_id + endings[image_id])} and {ending}: two files of one image",
                hint="remove one of them",
            )
        endings[image_id] = ending
    return Listing(folder, endings)


def list_subfolders(folder: Path) -> list[str]:
    """The names of its subfolders, sorted, without hidden ones.

    Raises:
        DataError: the folder is unreadable.
    """
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def label_map(
    classes: ClassSet, trains: Mapping[int, int] | None = None, ignored: Iterable[int] = (IGNORE,)
) -> NDArray[np.uint8]:  # (256,)
    """The train id for each value in a label file, as a table. Without `trains` the values are the train ids."""
    table = np.full(256, _OUTSIDE, np.uint8)
    for value, train_id in (trains or {i: i for i in range(len(classes))}).items():
        table[value] = train_id
    table[list(ignored)] = IGNORE
    return table


class FileDataset(SegmentationDataset):
    """A dataset of two listings, images and labels, with the same ids."""

    def __init__(
        self,
        name: str,
        split: str,
        classes: ClassSet,
        images: Listing,
        labels: Listing | None,
        values: NDArray[np.uint8],  # (256,), see label_map
    ) -> None:
        """
        Raises:
            DataError: the folder has no images, or an image has no label.
        """
        self.name, self.split, self.classes = name, split, classes
        self.image_ids = tuple(sorted(images.endings))
        if not self.image_ids:
            raise DataError(f"{name} {split} is empty: no images in {images.folder}")
        self._images, self._values = images, values
        self._labels: Listing | None = None
        if labels is not None:
            self._check_labels(labels)
            self._labels = labels.only(self.image_ids)  # shares its strings with image_ids: half the pickle

    def image(self, index: int) -> NDArray[np.uint8]:
        return read_image(self._images.path(self.image_ids[index]))

    def size(self, index: int) -> tuple[int, int]:
        return read_size(self._images.path(self.image_ids[index]))

    def label(self, index: int) -> NDArray[np.uint8] | None:
        if self._labels is None:
            return None
        path = self._labels.path(self.image_ids[index])
        values = read_label(path)
        if values.shape != (size := self.size(index)):
            image = self._images.path(self.image_ids[index])
            raise DataError(
                f"{path} is {values.shape[0]}x{values.shape[1]} (height x width), "
                f"but its image {image} is {size[0]}x{size[1]}"
            )
        label = self._values[values]
        if (label == _OUTSIDE).any():
            raise self._outside(path, values, label)
        return label

    def stamp(self, index: int) -> str:
        image_id = self.image_ids[index]
        listings = [self._images, *([self._labels] if self._labels else [])]
        # The inode and its change time too: an editor may keep size and modification time, no edit keeps these.
        stats = [_stat(listing.path(image_id)) for listing in listings]
        files = [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats]
        return f"{files} {hashlib.sha256(self._values.tobytes()).hexdigest()}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for image_id in self.image_ids:  # sorted, so that the digest does not depend on the file system
            paths = [files.path(image_id) for files in (self._images, self._labels) if files is not None]
            digest.update("\0".join([image_id, *(str(_size_bytes(path)) for path in paths), ""]).encode())
        return digest.hexdigest()

    def _check_labels(self, labels: Listing) -> None:
        without = [image_id for image_id in self.image_ids if image_id not in labels.endings]
        if without:
            image = self._images.path(without[0])
            raise DataError(
                f"{self.name} {self.split}: {len(without)} of {len(self)} images have no label; "
                f"the first is {image}; its label was looked for in {labels.folder}"
            )

    def _outside(self, path: Path, values: NDArray[np.uint8], label: NDArray[np.uint8]) -> DataError:
        row, column = (int(v) for v in np.argwhere(label == _OUTSIDE)[0])
        known = _ranges(np.flatnonzero(self._values != _OUTSIDE).tolist())
        return DataError(
            f"{path} has the value {values[row, column]} at row {row}, column {column}; "
            f"valid values for {self.name} are {known}"
        )


def _names(folder: Path, nested: bool) -> Iterator[str]:
    for entry in _entries(folder):
        if not nested and not entry.is_dir():
            yield entry.name
        elif nested and entry.is_dir():
            yield from (f"{entry.name}/{inner}" for inner in _names(folder / entry.name, nested=False))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from None


def _size_bytes(path: Path) -> int:
    return _stat(path).st_size


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _ranges(values: list[int]) -> str:
    """ "0 to 11, 255" for 0, 1, ... 11, 255."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
