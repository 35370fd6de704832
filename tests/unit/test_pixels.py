"""Pixel arithmetic against slow references in exact or double arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdcache.cache.views import pixels
from kdcache.cache.views.pixels import distort_colours, resize_image, resize_label, thumbnail

sides = st.integers(1, 23)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def slow_line(line: list[int], length: int) -> list[int]:
    """Bilinear resize of one line: weights cut to 1/256, the result rounded half up."""
    out = []
    for i in range(length):
        centre = Fraction(2 * i + 1, 2) * Fraction(len(line), length)
        position = Fraction(math.floor(centre * 256), 256) - Fraction(1, 2)
        position = min(max(position, Fraction(0)), Fraction(len(line) - 1))
        before = math.floor(position)
        after = min(before + 1, len(line) - 1)
        weight = position - before
        out.append(math.floor(line[before] * (1 - weight) + line[after] * weight + Fraction(1, 2)))
    return out


@settings(max_examples=40, deadline=None)
@given(sides, sides, sides, sides)
def test_bilinear_equals_the_slow_reference(
    source_height: int, source_width: int, height: int, width: int
) -> None:
    image = noise(source_height, source_width, 3)
    columns = np.array(
        [[slow_line(image[:, x, c].tolist(), height) for c in range(3)] for x in range(source_width)]
    )
    rows = columns.transpose(2, 0, 1)  # (height, source_width, 3)
    expected = np.array([[slow_line(rows[y, :, c].tolist(), width) for c in range(3)] for y in range(height)])
    np.testing.assert_array_equal(resize_image(image, height, width), expected.transpose(0, 2, 1))


def test_bilinear_of_an_equal_size_is_a_copy() -> None:
    image = noise(5, 7, 3)
    out = resize_image(image, 5, 7)
    np.testing.assert_array_equal(out, image)
    assert not np.shares_memory(out, image)


def test_bilinear_follows_a_ramp_to_within_one_level() -> None:
    ramp = np.repeat(np.arange(0, 250, 10, dtype=np.uint8)[None, :, None], 4, axis=0).repeat(3, axis=2)
    found = resize_image(ramp, 8, 50)[3, 1:-1, 0].astype(float)
    exact = (np.arange(1, 49) + 0.5) * 5 - 5
    assert np.abs(found - exact).max() <= 1


@settings(max_examples=40, deadline=None)
@given(sides, sides, sides, sides)
def test_nearest_equals_the_slow_reference(
    source_height: int, source_width: int, height: int, width: int
) -> None:
    label = noise(source_height, source_width)
    expected = [
        [
            label[
                math.floor(Fraction(2 * y + 1, 2) * Fraction(source_height, height)),
                math.floor(Fraction(2 * x + 1, 2) * Fraction(source_width, width)),
            ]
            for x in range(width)
        ]
        for y in range(height)
    ]
    np.testing.assert_array_equal(resize_label(label, height, width), expected)


def slow_colours(
    image: NDArray[np.uint8], brightness: int, contrast: float, saturation: float, hue: float
) -> NDArray[np.float64]:
    """The same in doubles, the rotation by Rodrigues' formula about the grey axis."""
    axis = np.ones(3) / math.sqrt(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = math.radians(hue)
    rotation = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    mean = image.mean(axis=2, keepdims=True)
    chroma = (image - mean) @ rotation.T
    return np.clip(contrast * (mean + saturation * chroma + brightness), 0, 255)


@settings(max_examples=60, deadline=None)
@given(st.integers(-32, 32), st.integers(500, 1500), st.integers(500, 1500), st.integers(-36, 36))
def test_colours_follow_the_reference_to_within_rounding(b: int, c: int, s: int, h: int) -> None:
    image = noise(19, 11, 3, seed=h & 7)
    found = distort_colours(image, brightness_levels=b, contrast_milli=c, saturation_milli=s, hue_degrees=h)
    expected = slow_colours(image, b, c / 1000, s / 1000, h)
    assert np.abs(found - expected).max() <= 0.5 + 0.2  # half a level, and the matrix kept to 2^-12


@given(st.integers(0, 4000), st.integers(-180, 180))
def test_greys_stay_grey_under_saturation_and_hue(saturation: int, hue: int) -> None:
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    found = distort_colours(
        greys, brightness_levels=0, contrast_milli=1000, saturation_milli=saturation, hue_degrees=hue
    )
    np.testing.assert_array_equal(found, greys)


def test_neutral_parameters_change_no_colour() -> None:
    image = noise(40, 30, 3)
    same = distort_colours(
        image, brightness_levels=0, contrast_milli=1000, saturation_milli=1000, hue_degrees=0
    )
    np.testing.assert_array_equal(same, image)


def test_a_third_of_a_turn_takes_red_to_green() -> None:
    red = np.array([[[200, 0, 0]]], np.uint8)
    turned = distort_colours(
        red, brightness_levels=0, contrast_milli=1000, saturation_milli=1000, hue_degrees=120
    )
    assert turned.tolist() == [[[0, 200, 0]]]


@pytest.mark.parametrize("contrast", [0, 4000])
def test_colours_survive_the_ends_of_every_range(contrast: int) -> None:
    image = np.array([[[255, 0, 255], [0, 255, 0]]], np.uint8)
    for brightness in (-255, 255):
        for hue in (-180, 180):
            found = distort_colours(
                image,
                brightness_levels=brightness,
                contrast_milli=contrast,
                saturation_milli=4000,
                hue_degrees=hue,
            )
            expected = slow_colours(image, brightness, contrast / 1000, 4.0, hue)
            assert np.abs(found - expected).max() <= 2


def test_no_entry_of_the_angle_tables_is_near_a_tie() -> None:
    # libm may differ in the last bit of a double; far from a tie that cannot move a rounded entry.
    for angle in range(-180, 181):
        for value in (math.cos(math.radians(angle)), math.sin(math.radians(angle)) / math.sqrt(3)):
            assert abs(value * 2**16 % 1 - 0.5) > 1e-6
    assert pixels._COS[60] == 2**15
    assert pixels._SIN_OVER_SQRT3[90] == round(2**16 / math.sqrt(3))


@settings(max_examples=40, deadline=None)
@given(sides, sides)
def test_thumbnail_is_the_rounded_mean_of_each_box(height: int, width: int) -> None:
    image = noise(height, width, 3)
    small = thumbnail(image)
    for i in range(8):
        for j in range(8):
            top, left = i * height // 8, j * width // 8
            bottom, right = max((i + 1) * height // 8, top + 1), max((j + 1) * width // 8, left + 1)
            mean = image[top:bottom, left:right].reshape(-1, 3).mean(axis=0)
            np.testing.assert_array_equal(small[i, j], np.floor(mean + 0.5))
