"""Replay: the same bytes in any process, and a digest that shows what differs."""

import hashlib
import io
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from kdcache.cache.errors import StoreDamagedError, StoreMismatchError
from kdcache.cache.views import replay as replay_module
from kdcache.cache.views.drawing import draw_view
from kdcache.cache.views.policy import ViewPolicy
from kdcache.cache.views.replay import (
    ENTRY_COLUMNS,
    CropDigest,
    EntryRow,
    compare_digest,
    crop_digest,
    entry_row,
    parse_entry_row,
    replay,
)
from kdcache.cache.views.view import View

POLICY = ViewPolicy(crop_height_px=48, crop_width_px=64, photometric=True)
WHOLE = View(scale_milli=1000, top=0, left=0, box_height=40, box_width=60, height=40, width=60, flip=0)


def picture(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """A smooth image with some texture, like a photo."""
    y, x = np.mgrid[: size[0], : size[1]]
    rng = np.random.default_rng(seed)
    waves = sum(
        a * np.sin(y * f + x * g + p) for a, f, g, p in rng.uniform(0.02, 1, (6, 4)) * (30, 0.3, 0.3, 6)
    )
    planes = [waves * w + m for w, m in rng.uniform(0.3, 1, (3, 2)) * (1, 200)]
    return np.clip(np.stack(planes, axis=2) + rng.normal(0, 3, (*size, 3)), 0, 255).astype(np.uint8)


def ids(size: tuple[int, int]) -> NDArray[np.uint8]:
    return (np.add.outer(np.arange(size[0]) // 7, np.arange(size[1]) // 5) % 19).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 1000), st.booleans())
def test_crops_have_the_policys_size_and_blank_padding(
    height: int, width: int, index: int, labelled: bool
) -> None:
    image = picture((height, width)) | 1  # no pixel is 0
    label = ids((height, width)) if labelled else None
    view = draw_view(replace(POLICY, photometric=False), 0, "a", index, (height, width), label)
    crop = replay(view, POLICY, image, label)
    assert crop.image.shape == (48, 64, 3) and crop.label.shape == (48, 64)
    assert (crop.height, crop.width) == (view.height, view.width)
    padding = np.ones((48, 64), bool)
    padding[: crop.height, : crop.width] = False
    assert (crop.image[padding] == 0).all() and (crop.image[~padding] > 0).all()
    assert (crop.label[padding] == 255).all()
    assert (crop.label[~padding] == 255).all() != labelled


def test_a_crop_is_the_resized_box() -> None:
    image, label = picture((40, 60)), ids((40, 60))
    view = replace(WHOLE, top=3, left=5, box_height=10, box_width=20, height=10, width=20)
    crop = replay(view, POLICY, image, label)
    np.testing.assert_array_equal(crop.image[:10, :20], image[3:13, 5:25])
    np.testing.assert_array_equal(crop.label[:10, :20], label[3:13, 5:25])


def test_a_flip_mirrors_the_valid_region_only() -> None:
    image, label = picture((40, 60)), ids((40, 60))
    plain = replay(WHOLE, POLICY, image, label)
    mirrored = replay(replace(WHOLE, flip=1), POLICY, image, label)
    np.testing.assert_array_equal(mirrored.image[:40, :60], plain.image[:40, :60][:, ::-1])
    np.testing.assert_array_equal(mirrored.label[:40, :60], plain.label[:40, :60][:, ::-1])
    assert (mirrored.label[:, 60:] == 255).all() and (mirrored.image[:, 60:] == 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_mirroring_the_image_or_the_view_is_the_same_where_sizes_are_kept(index: int) -> None:
    image, label = picture((40, 60)), ids((40, 60))
    policy = replace(POLICY, scale_min=1, scale_max=1, crop_width_px=16)
    view = draw_view(policy, 0, "a", index, (40, 60), label)
    other = replace(view, flip=1 - view.flip, left=60 - view.left - view.box_width)
    a = replay(view, policy, image, label)
    b = replay(other, policy, image[:, ::-1], label[:, ::-1])
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.label, b.label)


def digest_of_many() -> str:
    image, label = picture((70, 90)), ids((70, 90))
    policy = replace(POLICY, cat_max_ratio=0.3)
    whole = hashlib.sha256(image)
    for k in range(20):
        view = draw_view(policy, 11, "a", k, (70, 90), label)
        whole.update(entry_row(0, k, view, crop_digest(replay(view, policy, image, label))))
    return whole.hexdigest()


def test_replay_is_bitwise_equal_in_another_process() -> None:
    script = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('replaying', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.digest_of_many())\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "NPY_DISABLE_CPU_FEATURES": ""}
    done = subprocess.run(
        [sys.executable, "-c", script, __file__], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == digest_of_many()


def test_pixels_never_change() -> None:
    """If this changes, the digests in all existing stores become wrong."""
    ramp = np.arange(40 * 60 * 3, dtype=np.int64).reshape(40, 60, 3)
    image = (ramp * 7919 % 251).astype(np.uint8)
    view = View(
        scale_milli=1300,
        top=2,
        left=3,
        box_height=33,
        box_width=47,
        height=43,
        width=61,
        flip=1,
        brightness_levels=-9,
        contrast_milli=1234,
        saturation_milli=777,
        hue_degrees=-17,
    )
    digest = crop_digest(replay(view, POLICY, image, ids((40, 60))))
    assert digest.image.hex() == "04be98655a250dfe7f2a1fc0b49ff7a4"
    assert digest.label.hex() == "331086153cfc8408a428460d729c857f"


def test_colours_change_the_image_and_not_the_label() -> None:
    image, label = picture((40, 60)), ids((40, 60))
    plain = replay(WHOLE, POLICY, image, label)
    bright = replay(replace(WHOLE, brightness_levels=20), POLICY, image, label)
    np.testing.assert_array_equal(
        bright.image[:40, :60], np.minimum(plain.image[:40, :60].astype(int) + 20, 255)
    )
    np.testing.assert_array_equal(bright.label, plain.label)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"top": 1}, "at least 41x60 pixels, but this one has 40x60"), ({"height": 49}, "has 49x60")],
)
def test_a_view_that_does_not_fit_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(StoreMismatchError, match=message):
        replay(replace(WHOLE, **change), POLICY, picture((40, 60)), None)


@settings(max_examples=50)
@given(
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**31 - 1),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=192, max_size=192),
    st.integers(-36, 36),
)
def test_rows_round_trip(
    index: int, view_index: int, image: bytes, label: bytes, small: bytes, hue: int
) -> None:
    entry = EntryRow(index, view_index, replace(WHOLE, hue_degrees=hue), CropDigest(image, label, small))
    row = entry_row(entry.image_index, entry.view_index, entry.view, entry.digest)
    assert row.dtype == np.int32 and row.shape == (len(ENTRY_COLUMNS),)
    assert parse_entry_row(row) == entry
    assert row[ENTRY_COLUMNS.index("hue_degrees")] == hue


@pytest.mark.parametrize(
    ("column", "value"), [("image_index", -1), ("box_width", 0), ("contrast_milli", 99999)]
)
def test_a_row_that_cannot_be_is_damage(column: str, value: int) -> None:
    row = entry_row(0, 0, WHOLE, crop_digest(replay(WHOLE, POLICY, picture((40, 60)), None)))
    row[ENTRY_COLUMNS.index(column)] = value
    with pytest.raises(StoreDamagedError):
        parse_entry_row(row)
    with pytest.raises(StoreDamagedError):
        parse_entry_row(row[:-1])


def found(image: NDArray[np.uint8], label: NDArray[np.uint8] | None = None) -> CropDigest:
    return crop_digest(replay(WHOLE, POLICY, image, label))


def test_the_same_crop_compares_equal() -> None:
    image, label = picture((40, 60)), ids((40, 60))
    assert compare_digest(found(image, label), found(image.copy(), label.copy())) is None


def test_one_edited_pixel_is_seen() -> None:
    image = picture((40, 60))
    edited = image.copy()
    edited[20, 30, 1] ^= 1
    assert compare_digest(found(image), found(edited)) == "another decoder or resize"


def test_another_jpeg_decoding_is_told_from_another_image() -> None:
    image = picture((40, 60))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    decoded = np.asarray(Image.open(buffer))
    assert compare_digest(found(image), found(decoded)) == "another decoder or resize"
    assert compare_digest(found(image), found(picture((40, 60), seed=1))) == "another image"


def test_another_resize_is_told_from_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture((40, 60))
    view = replace(WHOLE, height=30, width=50)
    stored = crop_digest(replay(view, POLICY, image, None))

    def pillow(box: NDArray[np.uint8], height: int, width: int) -> NDArray[Any]:
        return np.asarray(Image.fromarray(box).resize((width, height), Image.Resampling.BICUBIC))

    monkeypatch.setattr(replay_module, "resize_image", pillow)
    assert (
        compare_digest(stored, crop_digest(replay(view, POLICY, image, None))) == "another decoder or resize"
    )


def test_another_label_is_seen() -> None:
    image, label = picture((40, 60)), ids((40, 60))
    relabelled = label.copy()
    relabelled[0, 0] = 255
    assert compare_digest(found(image, label), found(image, relabelled)) == "another label"
    assert compare_digest(found(image, label), found(image, None)) == "another label"


def test_the_valid_size_is_part_of_the_digest() -> None:
    black = np.zeros((40, 60, 3), np.uint8)
    narrow = crop_digest(replay(replace(WHOLE, width=59, box_width=59), POLICY, black, None))
    assert narrow.image != found(black).image
