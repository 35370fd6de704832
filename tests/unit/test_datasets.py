"""Datasets: every layout from a tiny tree, every fault as one line that names the file."""

import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.cache.errors import DataError, NotFoundError, UsageError
from kdcache.cache.images.classes import CLASS_SETS, IGNORE, colour_map
from kdcache.cache.images.datasets import DATASETS, SegmentationDataset, open_dataset, read_classes

H, W = 4, 6


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def save(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path)
    return path


def labels(*values: int) -> np.ndarray:
    """A label that starts with the values and repeats the last one."""
    flat = np.full(H * W, values[-1], np.uint8)
    flat[: len(values)] = values
    return flat.reshape(H, W)


def save_palette(path: Path, values: np.ndarray) -> Path:
    image = Image.fromarray(values, "L")
    image = Image.new("P", (W, H))
    image.putpalette(bytes(np.array(colour_map(256), np.uint8).ravel()))
    image.putdata(values.ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def make_cityscapes(root: Path) -> None:
    for split, city in (("train", "ulm"), ("train", "aachen"), ("val", "lindau"), ("test", "bonn")):
        for n in range(2):
            stem = f"{city}/{city}_00000{n}_000019"
            save(root / f"leftImg8bit/{split}/{stem}_leftImg8bit.png", pixels(n))
            save(root / f"gtFine/{split}/{stem}_gtFine_labelIds.png", labels(7, 8, 33, 0, 9, 26))
            save(root / f"gtFine/{split}/{stem}_gtFine_color.png", pixels(n))


def make_ade20k(root: Path) -> None:
    for split, folder in (("train", "training"), ("val", "validation")):
        for n in range(2):
            save(root / f"images/{folder}/ADE_{split}_0000000{n}.jpg", pixels(n))
            save(root / f"annotations/{folder}/ADE_{split}_0000000{n}.png", labels(0, 1, 150, 7))


def make_voc2012(root: Path) -> None:
    sets = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
    sets["trainval"] = sorted(sets["train"] + sets["val"])
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split, ids in sets.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(reversed(ids)) + "\n")
    for n, image_id in enumerate([*sets["trainval"], "2008_000001", "2008_000002"]):
        save(root / f"JPEGImages/{image_id}.jpg", pixels(n))
    for image_id in sets["trainval"]:
        save_palette(root / f"SegmentationClass/{image_id}.png", labels(0, 20, 255, 3))


def make_camvid(root: Path) -> None:
    for split, suffix in (("train", "png"), ("val", "jpg"), ("test", "png")):
        for n in range(2):
            save(root / f"{split}/0001TP_00669{n}.{suffix}", pixels(n))
            save(root / f"{split}annot/0001TP_00669{n}.png", labels(0, 10, 11, 4))


def make_folder(root: Path, *splits: str) -> None:
    for split in splits or (".",):
        for n in range(2):
            save(root / "images" / split / f"photo {n}.JPG", pixels(n))
            save(root / "masks" / split / f"photo {n}.png", labels(0, 2, 255, 1))
    (root / "classes.txt").write_text("road 128 64 128\ntraffic light\ncar 0 0 142\n")


MAKE: dict[str, Callable[[Path], None]] = {
    "cityscapes": make_cityscapes,
    "ade20k": make_ade20k,
    "voc2012": make_voc2012,
    "camvid": make_camvid,
    "folder": make_folder,
}


@pytest.fixture(params=MAKE)
def tree(request, tmp_path) -> tuple[str, Path]:
    """Name and root of each dataset with files."""
    MAKE[request.param](tmp_path / "data")
    return request.param, tmp_path / "data"


FILES = {  # image and label of the first id of train
    "cityscapes": (
        "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
        "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
    ),
    "ade20k": ("images/training/ADE_train_00000000.jpg", "annotations/training/ADE_train_00000000.png"),
    "voc2012": ("JPEGImages/2007_000032.jpg", "SegmentationClass/2007_000032.png"),
    "camvid": ("train/0001TP_006690.png", "trainannot/0001TP_006690.png"),
    "folder": ("images/photo 0.JPG", "masks/photo 0.png"),
}
FIRST_TRAIN = {  # id of the first image; its label, to be read as `labels` takes it
    "cityscapes": ("aachen/aachen_000000_000019", (0, 1, 18, 255, 255, 13)),
    "ade20k": ("ADE_train_00000000", (255, 0, 149, 6)),
    "voc2012": ("2007_000032", (0, 20, 255, 3)),
    "camvid": ("0001TP_006690", (0, 10, 255, 4)),
    "folder": ("photo 0", (0, 2, 255, 1)),
}


def test_layouts(tree):
    name, root = tree
    dataset = open_dataset(name, root, "train")
    image_id, train_ids = FIRST_TRAIN[name]
    image, label = dataset.image(0), dataset.label(0)
    assert (dataset.name, dataset.split, dataset.image_ids[0]) == (name, "train", image_id)
    assert len(dataset) == (4 if name == "cityscapes" else 2)
    assert list(dataset.image_ids) == sorted(set(dataset.image_ids))
    assert image.dtype == label.dtype == np.uint8
    assert image.shape == (H, W, 3) and dataset.size(0) == (H, W)
    assert image.flags.writeable and label.flags.writeable  # torch.from_numpy warns at others
    np.testing.assert_array_equal(label, labels(*train_ids))
    if name in CLASS_SETS:
        assert dataset.classes is CLASS_SETS[name]


def test_png_images_come_as_they_are(tmp_path):
    make_camvid(tmp_path)
    np.testing.assert_array_equal(open_dataset("camvid", tmp_path, "train").image(1), pixels(1))


def test_a_dataset_is_the_same_wherever_it_stands(tree, tmp_path, monkeypatch):
    """Ids and fingerprint do not depend on the root: given, under $KDCACHE_DATA, or under ./data."""
    name, root = tree
    here = open_dataset(name, root, "train")
    shutil.copytree(root, tmp_path / "away/data" / name)
    monkeypatch.chdir(tmp_path / "away")
    default = open_dataset(name, None, "train")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCACHE_DATA", str(tmp_path / "away/data"))
    named = open_dataset(name, None, "train")
    assert here.image_ids == default.image_ids == named.image_ids
    assert here.fingerprint() == named.fingerprint()
    with monkeypatch.context() as inner:
        inner.chdir(tmp_path / "away")
        assert default.fingerprint() == here.fingerprint()


@pytest.mark.parametrize("kind", [0, 1], ids=["image", "label"])
def test_fingerprint_sees_sizes(tree, kind):
    name, root = tree
    dataset = open_dataset(name, root, "train")
    before, path = dataset.fingerprint(), root / FILES[name][kind]
    size = path.stat().st_size
    os.truncate(path, size + 1)
    assert dataset.fingerprint() != before
    os.truncate(path, size)
    assert dataset.fingerprint() == before


def test_fingerprint_sees_names(tmp_path):
    make_camvid(tmp_path)
    before = open_dataset("camvid", tmp_path, "train").fingerprint()
    for folder in ("train", "trainannot"):
        (tmp_path / folder / "0001TP_006691.png").rename(tmp_path / folder / "0001TP_006692.png")
    assert open_dataset("camvid", tmp_path, "train").fingerprint() != before


def test_a_dataset_pickles_small_and_reads_the_same(tree):
    name, root = tree
    dataset = open_dataset(name, root, "train")
    pickled = pickle.dumps(dataset)
    copy = pickle.loads(pickled)
    assert len(pickled) < 10_000
    assert (copy.image_ids, copy.fingerprint()) == (dataset.image_ids, dataset.fingerprint())
    np.testing.assert_array_equal(copy.image(1), dataset.image(1))
    np.testing.assert_array_equal(copy.label(1), dataset.label(1))


def test_threads_read_together(tree):
    name, root = tree
    dataset = open_dataset(name, root, "train")
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda _: (dataset.image(1), dataset.label(1)), range(40)))
    for image, label in read:
        np.testing.assert_array_equal(image, dataset.image(1))
        np.testing.assert_array_equal(label, dataset.label(1))


def test_cityscapes_maps_all_label_ids(tmp_path):
    from torchvision.datasets import Cityscapes

    make_cityscapes(tmp_path)
    path = tmp_path / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png"
    known = [c for c in Cityscapes.classes if c.id >= 0]
    values = np.resize(np.array([c.id for c in known], np.uint8), (6, 6))
    save(path, values)
    save(
        tmp_path / "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png",
        np.zeros((6, 6, 3), np.uint8),
    )
    expected = np.resize(np.array([c.train_id for c in known], np.uint8), (6, 6))
    np.testing.assert_array_equal(open_dataset("cityscapes", tmp_path, "val").label(0), expected)


def test_cityscapes_test_has_no_labels(tmp_path):
    make_cityscapes(tmp_path)
    dataset = open_dataset("cityscapes", tmp_path, "test")
    assert dataset.label(0) is None and dataset.image(0).shape == (H, W, 3) and len(dataset) == 2
    shutil.rmtree(tmp_path / "gtFine")
    assert open_dataset("cityscapes", tmp_path, "test").fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize(
    "name, below",
    [
        ("ade20k", "ADEChallengeData2016"),
        ("voc2012", "VOC2012"),
        ("voc2012", "VOCdevkit/VOC2012"),
    ],
)
def test_the_folder_around_serves_too(name, below, tmp_path):
    MAKE[name](tmp_path / below)
    assert open_dataset(name, tmp_path, "val").label(0) is not None


@pytest.mark.parametrize("path_list", [False, True])
def test_voc_train_aug(path_list, tmp_path):
    make_voc2012(tmp_path)
    with pytest.raises(NotFoundError, match=r"trainaug\.txt") as caught:
        open_dataset("voc2012", tmp_path, "train_aug")
    assert "SBD" in caught.value.hint
    ids = ["2008_000002", "2007_000032"]
    lines = [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" if path_list else i for i in ids]
    (tmp_path / "ImageSets/Segmentation/trainaug.txt").write_text("\n".join(lines))
    for image_id in ids:
        save(tmp_path / f"SegmentationClassAug/{image_id}.png", labels(15, 255))
    dataset = open_dataset("voc2012", tmp_path, "train_aug")
    assert dataset.image_ids == ("2007_000032", "2008_000002")
    np.testing.assert_array_equal(dataset.label(1), labels(15, 255))


def test_folder_with_splits(tmp_path):
    make_folder(tmp_path, "train", "dawn")
    dataset = open_dataset("folder", tmp_path, "dawn")
    assert dataset.image_ids == ("photo 0", "photo 1") and dataset.label(0) is not None
    with pytest.raises(UsageError, match="no split 'val'") as caught:
        open_dataset("folder", tmp_path, "val")
    assert "dawn, train" in caught.value.hint


def test_folder_without_masks(tmp_path):
    make_folder(tmp_path, "train", "extra")
    shutil.rmtree(tmp_path / "masks/extra")
    assert open_dataset("folder", tmp_path, "extra").label(0) is None
    assert open_dataset("folder", tmp_path, "train").label(0) is not None
    shutil.rmtree(tmp_path / "masks")
    assert open_dataset("folder", tmp_path, "train").label(0) is None


def test_folder_with_masks_beside_its_splits(tmp_path):
    make_folder(tmp_path, "train")
    shutil.copytree(tmp_path / "masks/train", tmp_path / "flat")
    shutil.rmtree(tmp_path / "masks")
    (tmp_path / "flat").rename(tmp_path / "masks")
    with pytest.raises(DataError, match="contains masks but no folder train,"):
        open_dataset("folder", tmp_path, "train")


def test_folder_without_splits_is_train_alone(tmp_path):
    make_folder(tmp_path)
    with pytest.raises(UsageError, match="its only split is 'train', not 'val'") as caught:
        open_dataset("folder", tmp_path, "val")
    assert "images/val" in caught.value.hint


def test_hidden_files_are_no_images(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "images/.photo 0.jpg").write_bytes(b"")
    (tmp_path / "images/.cache").mkdir()
    (tmp_path / "images/notes.txt").write_text("")
    assert open_dataset("folder", tmp_path, "train").image_ids == ("photo 0", "photo 1")


def save_png(path: Path, width: int, height: int, depth: int, colour_type: int, rows: list[bytes]) -> Path:
    """A PNG of a pixel format that Pillow reads and does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    return path


@pytest.fixture
def camvid(tmp_path) -> Callable[[], SegmentationDataset]:
    make_camvid(tmp_path)
    return lambda: open_dataset("camvid", tmp_path, "train")


@pytest.fixture
def image_file(camvid, tmp_path) -> Path:
    return tmp_path / FILES["camvid"][0]


@pytest.fixture
def label_file(camvid, tmp_path) -> Path:
    return tmp_path / FILES["camvid"][1]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_kind_of_image_becomes_rgb(camvid, image_file, mode, tmp_path):
    kind = ".jpg" if mode == "CMYK" else ".png"
    image_file.unlink()
    path = save(image_file.with_suffix(kind), pixels(), mode)
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(camvid().image(0), expected)


def test_a_transparent_palette_keeps_its_colours(camvid, image_file):
    image = Image.new("P", (W, H), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(image_file, transparency=bytes([255, 0]))
    np.testing.assert_array_equal(camvid().image(0), np.full((H, W, 3), (10, 200, 30)))


def test_exif_does_not_turn_an_image(tmp_path):
    make_camvid(tmp_path)
    path = tmp_path / "val/0001TP_006690.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(pixels()).save(path, exif=exif)
    dataset = open_dataset("camvid", tmp_path, "val")
    assert dataset.image(0).shape == (H, W, 3) and dataset.size(0) == (H, W)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_labels_of_few_bits_keep_their_values(camvid, label_file, depth):
    """PNG optimisers pack labels like this, and Pillow stretches their values to 0..255."""
    values = np.resize(np.arange(min(2**depth, 11)), (H, 8))
    bits = [[f"{v:0{depth}b}" for v in row] for row in values]
    rows = [int("".join(row), 2).to_bytes(depth, "big") for row in bits]
    save_png(label_file, 8, H, depth, 0, rows)
    save(label_file.parent.parent / FILES["camvid"][0], np.zeros((H, 8, 3), np.uint8))
    np.testing.assert_array_equal(camvid().label(0), values)


def test_palette_labels_are_read_as_indices(camvid, label_file):
    save_palette(label_file, labels(0, 3, 11, 10))
    np.testing.assert_array_equal(camvid().label(0), labels(0, 3, IGNORE, 10))


def check_line(error: Exception, *parts: object) -> None:
    text = str(error)
    assert "\n" not in text and all(str(part) in text for part in parts), text


def test_an_image_of_16_bits_is_refused(camvid, image_file):
    save(image_file, np.full((H, W), 40000, np.uint16))
    with pytest.raises(DataError) as caught:
        camvid().image(0)
    check_line(caught.value, image_file, "8 bits")
    save_png(image_file, W, H, 16, 2, [bytes(W * 6)] * H)
    with pytest.raises(DataError, match="8 bits"):
        camvid().image(0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not an image",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-30] + bytes(18) + data[-12:],
        lambda data: data.replace(b"IDAT", b"IDAX"),
    ],
    ids=["empty", "text", "half", "zeros", "chunk"],
)
@pytest.mark.parametrize("kind", [0, 1], ids=["image", "label"])
def test_damaged_files(camvid, tmp_path, kind, damage):
    path = tmp_path / FILES["camvid"][kind]
    path.write_bytes(damage(path.read_bytes()))
    dataset = camvid()
    with pytest.raises(DataError) as caught:
        (dataset.image, dataset.label)[kind](0)
    check_line(caught.value, path)


def test_half_a_jpeg(tmp_path):
    make_ade20k(tmp_path)
    path = tmp_path / FILES["ade20k"][0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError) as caught:
        open_dataset("ade20k", tmp_path, "train").image(0)
    check_line(caught.value, path)


@pytest.mark.parametrize("kind", [0, 1], ids=["image", "label"])
def test_files_that_go_or_close(camvid, tmp_path, kind, monkeypatch):
    path = tmp_path / FILES["camvid"][kind]
    dataset = camvid()
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", deny)
        with pytest.raises(DataError) as caught:
            (dataset.image, dataset.label)[kind](0)
        check_line(caught.value, path, "Permission denied")
    path.unlink()
    for read in (lambda: (dataset.image, dataset.label)[kind](0), dataset.fingerprint):
        with pytest.raises(DataError) as caught:
            read()
        check_line(caught.value, path, "No such file")


def deny(path: Path) -> None:
    """In place of a file without read permission: root can read those."""
    raise PermissionError(13, "Permission denied", str(path))


def test_a_label_of_another_size(camvid, label_file, image_file):
    save(label_file, np.zeros((H, W + 1), np.uint8))
    with pytest.raises(DataError) as caught:
        camvid().label(0)
    check_line(caught.value, label_file, image_file, "4x7", "4x6")


BAD_VALUES = {"cityscapes": 34, "ade20k": 151, "voc2012": 21, "camvid": 12, "folder": 3}


def test_a_value_outside_the_classes(tree):
    name, root = tree
    path, value = root / FILES[name][1], BAD_VALUES[name]
    values = labels(1)
    values[2, 5] = value
    save(path, values)
    with pytest.raises(DataError) as caught:
        open_dataset(name, root, "train").label(0)
    check_line(caught.value, path, f"value {value} at row 2, column 5", f"to {value - 1}")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_label_of_several_channels(camvid, label_file, mode):
    save(label_file, pixels(), mode)
    with pytest.raises(DataError) as caught:
        camvid().label(0)
    check_line(caught.value, label_file, f"mode {mode}")


def test_an_image_without_its_label(tree):
    name, root = tree
    (root / FILES[name][1]).unlink()
    with pytest.raises(DataError) as caught:
        open_dataset(name, root, "train")
    check_line(caught.value, name, root / FILES[name][0], "no label")


def test_two_files_of_one_image(camvid, image_file):
    save(image_file.with_suffix(".jpg"), pixels())
    with pytest.raises(DataError, match="two files of one image") as caught:
        camvid()
    check_line(caught.value, image_file.with_suffix(".jpg"), ".png")


def test_an_empty_split(tree):
    name, root = tree
    if name == "voc2012":
        folder = root / "ImageSets/Segmentation/train.txt"
        folder.write_text("\n")
    else:
        folder = (root / FILES[name][0]).parent
        folder = folder.parent if name == "cityscapes" else folder
        shutil.rmtree(folder)
        folder.mkdir()
    with pytest.raises(DataError) as caught:
        open_dataset(name, root, "train")
    check_line(caught.value, folder, "no image")


def test_a_missing_root(tree, tmp_path):
    """The message says what was missing, where it was searched, how to get it, and what works without data."""
    name, root = tree
    shutil.rmtree(root)
    with pytest.raises(NotFoundError) as caught:
        open_dataset(name, root, "train")
    check_line(caught.value, name, root)
    assert "streets" in caught.value.hint and "--data-root" in caught.value.hint
    if name == "cityscapes":
        for part in ("cityscapes-dataset.com", "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
            assert part in caught.value.hint


def test_a_missing_part(tree):
    name, root = tree
    first = root / FILES[name][1 if name != "folder" else 0]
    part = root / first.relative_to(root).parts[0]
    shutil.rmtree(part)
    with pytest.raises(NotFoundError) as caught:
        open_dataset(name, root, "train")
    check_line(caught.value, part)


def test_voc_list_with_strange_ids(tmp_path):
    make_voc2012(tmp_path)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("2007_000033\n2099_000001\n")
    with pytest.raises(DataError) as caught:
        open_dataset("voc2012", tmp_path, "val")
    check_line(caught.value, tmp_path / "ImageSets/Segmentation/val.txt", "2099_000001")


def test_unknown_names():
    with pytest.raises(UsageError, match="unknown dataset 'cityscape'") as caught:
        open_dataset("cityscape", None, "train")
    assert caught.value.hint.startswith("did you mean cityscapes? one of: ")
    assert all(name in caught.value.hint for name in DATASETS)
    with pytest.raises(UsageError, match="no options"):
        open_dataset("camvid:360x480", None, "train")


@pytest.mark.parametrize("name", [n for n in MAKE if n != "folder"])
def test_unknown_split(name, tmp_path):
    with pytest.raises(UsageError, match="no split 'training'") as caught:
        open_dataset(name, tmp_path, "training")
    assert "train, val" in caught.value.hint


def test_streets_needs_no_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("streets:48x96:10", None, "train")
    assert (dataset.name, len(dataset), dataset.size(0)) == ("streets:48x96:10", 10, (48, 96))
    assert dataset.classes is CLASS_SETS["cityscapes"]


def test_class_files(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffroad 128 64 128\n\n  traffic light  \ncar 0 0 256\nlevel 1 2 3 4\r\n", "utf-8")
    classes = read_classes(path)
    assert classes.names == ("road", "traffic light", "car 0 0 256", "level 1")
    assert classes.palette == ((128, 64, 128), colour_map(4)[1], colour_map(4)[2], (2, 3, 4))


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "lists 0 classes"),
        (b"\n".join(b"class %d" % n for n in range(255)), "lists 255 classes"),
        (b"road\ncar\nroad 1 2 3\n", "'road' twice"),
        (b"stra\xdfe\n", "not UTF-8"),
    ],
)
def test_class_files_that_make_no_sense(tmp_path, content, reason):
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_classes(path)
    check_line(caught.value, path, reason)


def test_folder_without_class_file(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(NotFoundError) as caught:
        open_dataset("folder", tmp_path, "train")
    check_line(caught.value, tmp_path / "classes.txt")


def test_camvid_itself(root):
    home = root.parent / "shared/data/camvid"
    if not home.is_dir():
        pytest.skip("CamVid is not beside the checkout, under shared/data/camvid")
    dataset = open_dataset("camvid", home, "train")
    assert len(dataset) == 367 and dataset.image_ids[0] == "0001TP_006690"
    assert {dataset.size(i) for i in range(367)} == {(360, 480)}
    assert dataset.image(366).shape == (360, 480, 3)
    seen = set().union(*(np.unique(dataset.label(i)).tolist() for i in range(0, 367, 8)))
    assert seen == {*range(11), IGNORE}
    assert len(open_dataset("camvid", home, "val")) == 101
