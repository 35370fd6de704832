"""Stored crops: they decode to what the teacher saw, and rows of an untrusted store do no harm."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcache.cache.errors import StoreDamagedError, UsageError
from kdcache.cache.views.crops import (
    CROPS,
    LABELS,
    canonical_inputs,
    crop_packings,
    encode_crop,
    pack_file,
    unpack_crop,
    with_decoded,
)
from kdcache.cache.views.replay import Crop


def make_crop(size=(24, 40), valid_size=(20, 33), seed=0) -> Crop:
    generator = np.random.default_rng(seed)
    image, label = np.zeros((*size, 3), np.uint8), np.full(size, 255, np.uint8)
    image[: valid_size[0], : valid_size[1]] = generator.integers(0, 256, (*valid_size, 3))
    label[: valid_size[0], : valid_size[1]] = generator.integers(0, 5, valid_size)
    return Crop(image, label, *valid_size)


def stored(inputs: str, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    longest = crop_packings(crop.label.shape)[CROPS].shape[0]
    return pack_file(encode_crop(inputs, crop), longest), crop.label


@settings(max_examples=30, deadline=None)
@given(
    inputs=st.sampled_from(["jpeg:95", "jpeg:10", "jpeg:100", "webp"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_stored_crop_is_the_one_that_the_teacher_saw(inputs, size, part, seed):
    valid_size = tuple(max(1, round(side * share)) for side, share in zip(size, part, strict=True))
    crop = make_crop(size, valid_size, seed)
    seen = with_decoded(crop, encode_crop(inputs, crop))
    read = unpack_crop(*stored(inputs, crop), valid_size, "here")
    assert np.array_equal(read.image, seen.image)
    assert np.array_equal(read.label, crop.label)
    assert (read.height, read.width) == valid_size
    assert not read.image[valid_size[0] :].any() and not read.image[:, valid_size[1] :].any()
    if inputs == "webp":
        assert np.array_equal(read.image, crop.image)


def test_arrays_are_plain_bytes():
    packings = crop_packings((24, 40))
    assert packings[LABELS].shape == (24, 40)
    assert {packing.dtype for packing in packings.values()} == {"uint8"}


def test_requests_have_one_form():
    assert canonical_inputs("replay") == "replay"
    assert canonical_inputs("stored") == canonical_inputs("jpeg") == canonical_inputs("jpeg:095") == "jpeg:95"
    assert canonical_inputs("webp") == "webp"


@pytest.mark.parametrize(
    "request_", ["", "png", "jpeg:", "jpeg:0", "jpeg:101", "jpeg:x", "webp:9", "replay:1", "stored:9"]
)
def test_requests_that_make_no_sense(request_):
    with pytest.raises(UsageError):
        canonical_inputs(request_)


def file_of(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "does not decode"),
        (b"\xff\xd8\xff\xe0 not a picture", "does not decode"),
        # In a format that kdcache does not write.
        (file_of(Image.new("RGB", (33, 20)), "PNG"), "does not decode"),
        (file_of(Image.new("RGB", (3000, 3000)), "JPEG"), "3000x3000 RGB, not 20x33"),  # not decoded at all
        (file_of(Image.new("L", (33, 20)), "JPEG"), "20x33 L"),
        (encode_crop("jpeg:95", make_crop())[:-200], "does not decode"),
    ],
)
def test_a_file_that_is_no_crop_is_damage(file, message):
    crop = make_crop()
    longest = max(len(file) + 4, crop_packings((24, 40))[CROPS].shape[0])
    with pytest.raises(StoreDamagedError, match=message):
        unpack_crop(pack_file(file, longest), crop.label, (20, 33), "passes/000/crops: entry 3")


def test_a_length_beyond_the_row_is_damage():
    row, label = stored("webp", make_crop())
    row[:4] = 255
    with pytest.raises(StoreDamagedError, match="impossible crop"):
        unpack_crop(row, label, (20, 33), "here")


def test_a_view_larger_than_the_crop_is_damage():
    row, label = stored("webp", make_crop())
    with pytest.raises(StoreDamagedError, match="impossible crop"):
        unpack_crop(row, label, (25, 33), "here")
