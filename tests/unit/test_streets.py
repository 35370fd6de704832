"""Drawn streets: the same bytes everywhere, every class where it belongs, every name parsed or refused."""

import hashlib
import pickle

import numpy as np
import pytest

from kdcache.cache.errors import UsageError
from kdcache.cache.images.canvas import Canvas, Dice
from kdcache.cache.images.datasets import open_dataset
from kdcache.cache.images.scene import SKY, draw_scene
from kdcache.cache.images.streets import Streets, parse_name

GOLDEN = {  # (name, split, index) -> digest of image and label
    ("streets:32x64:4", "train", 0): "dbd8eb8302bbce20",
    ("streets:96x192:8", "train", 3): "92e9584703ec920f",
    ("streets:96x192:8", "val", 3): "c978f41bd227bfe5",
    ("streets:71x130:8:5", "train", 1): "76cf992ffbc7f4c8",
    ("streets", "train", 0): "8bd07ebc2f963795",
}


def digest(name, split, index):
    dataset = Streets(name, split)
    data = dataset.image(index).tobytes() + dataset.label(index).tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


@pytest.mark.parametrize("scene", GOLDEN, ids=str)
def test_scenes_are_the_same_bytes_everywhere(scene):
    assert digest(*scene) == GOLDEN[scene]


def test_shapes_types_and_classes():
    dataset = open_dataset("streets:48x96:5", None, "train")
    assert len(dataset) == 5 and len(set(dataset.image_ids)) == 5
    for index in range(5):
        image, label = dataset.image(index), dataset.label(index)
        assert image.shape == (48, 96, 3) and image.dtype == np.uint8
        assert label.shape == (48, 96) and label.dtype == np.uint8 and label.max() < 19
        assert dataset.size(index) == (48, 96)
    assert len(open_dataset("streets:48x96:5", None, "val")) == 8


def test_every_class_is_met_and_none_fills_the_picture():
    labels = np.stack([draw_scene(96, 192, f"0 train_{index:05d}")[1] for index in range(60)])
    share = np.bincount(labels.ravel(), minlength=19) / labels.size
    met = [(labels == class_id).any(axis=(1, 2)).sum() for class_id in range(19)]
    assert min(met) >= 5 and share.max() < 0.5 and share.min() > 0.0005


def test_colour_alone_does_not_tell_the_class():
    """Guessing the class from a pixel's colour, fitted on other scenes, is often wrong."""
    scenes = [draw_scene(96, 192, f"0 train_{index:05d}") for index in range(40)]
    bins = [image.astype(np.int64) // 32 @ (64, 8, 1) for image, _ in scenes]
    counts = np.zeros((512, 19))
    for colour, (_, label) in zip(bins[:20], scenes[:20], strict=True):
        np.add.at(counts, (colour.ravel(), label.ravel()), 1)
    guess = counts.argmax(axis=1)
    pairs = zip(bins[20:], scenes[20:], strict=True)
    ious = np.zeros(19)
    confusion = np.zeros((19, 19))
    for colour, (_, label) in pairs:
        np.add.at(confusion, (label.ravel(), guess[colour].ravel()), 1)
    ious = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
    assert np.nanmean(ious) < 0.15


def test_pictures_are_given_out_as_copies():
    dataset = Streets("streets:32x64:2", "train")
    dataset.image(0)[:] = 0
    dataset.label(0)[:] = 0
    again = pickle.loads(pickle.dumps(dataset))
    assert again.image(0).any() and again.label(0).any()
    assert np.array_equal(again.image(1), dataset.image(1))


def test_fingerprints_tell_sets_apart():
    names = ["streets:32x64:4", "streets:32x64:5", "streets:32x64:4:1", "streets:64x64:4"]
    prints = {Streets(name, split).fingerprint() for name in names for split in ("train", "val")}
    assert len(prints) == 7  # four and five images leave the same val split of eight


def test_names():
    assert parse_name("streets") == ((256, 512), 400, 0)
    assert parse_name("streets:96x192:200:7") == ((96, 192), 200, 7)


@pytest.mark.parametrize(
    "name",
    [
        "streets:",
        "streets:96",
        "streets:96x",
        "streets:8x8",
        "streets:96x192:0",
        "streets:9999x9999",
        "street",
    ],
)
def test_bad_names_are_refused(name):
    with pytest.raises(UsageError):
        parse_name(name)


def test_an_unknown_split_is_refused():
    with pytest.raises(UsageError, match="'test'"):
        Streets("streets", "test")


def test_polygons_equal_the_slow_reference():
    canvas = Canvas(24, 32, Dice("test"), background=SKY)
    corners = [(3, 2), (28, 5), (20, 21), (5, 17)]
    canvas.polygon(corners, 1, (9, 9, 9))
    for row in range(24):
        for column in range(32):
            sides = [
                (column - x0) * (y1 - y0) - (row - y0) * (x1 - x0)
                for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True)
            ]
            assert (canvas.label[row, column] == 1) == (max(sides) <= 0 or min(sides) >= 0)
