"""Colours of the page: distinct for every kind of colour vision, and readable on light and dark backgrounds."""

from itertools import combinations

import numpy as np
import pytest

from kdcache.distill.report.html import style_sheet
from kdcache.distill.report.styles import (
    BASELINE,
    DASHES,
    INK_DARK,
    INK_LIGHT,
    LINES_DARK,
    LINES_LIGHT,
    MARKERS,
    PARTS_DARK,
    PARTS_LIGHT,
    give_styles,
)

# Dichromatic sight in linear RGB, by Machado, Oliveira and Fernandes (2009), severity 1.
SIGHTS = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def cielab(rgb: np.ndarray) -> np.ndarray:
    ratio = RGB_TO_XYZ @ rgb / (RGB_TO_XYZ @ np.ones(3))
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    """WCAG 2: from 1 to 21."""
    low, high = sorted(float(RGB_TO_XYZ[1] @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def least_distance(colours: tuple[str, ...], sight: str) -> float:
    seen = [cielab(np.clip(SIGHTS[sight] @ linear(colour), 0, 1)) for colour in colours]
    return min(float(np.linalg.norm(one - other)) for one, other in combinations(seen, 2))


def test_the_simulation_is_right() -> None:
    """A deuteranope hardly distinguishes red and green of equal lightness, but does distinguish blue and yellow."""
    assert least_distance(("#d04040", "#7d7b00"), "normal") > 50
    assert least_distance(("#d04040", "#7d7b00"), "deuteranopia") < 20
    assert least_distance(("#0000ff", "#ffff00"), "deuteranopia") > 100
    assert cielab(np.ones(3)) == pytest.approx([100, 0, 0], abs=0.01)


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize(
    ("colours", "least"),
    [(LINES_LIGHT, 25), (LINES_DARK, 25), (PARTS_LIGHT, 15), (PARTS_DARK, 15)],
    ids=("light", "dark", "light parts", "dark parts"),
)
def test_colours_are_told_apart(colours: tuple[str, ...], least: float, sight: str) -> None:
    assert least_distance(colours, sight) > least


@pytest.mark.parametrize("ink", [INK_LIGHT, INK_DARK], ids=("light", "dark"))
def test_text_is_readable(ink: dict[str, str]) -> None:
    for paper in ("paper", "raised"):
        for text in ("ink", "muted", "link"):
            assert contrast(ink[text], ink[paper]) >= 4.5, (text, paper)
    for paper in ("good", "good-strong", "bad", "bad-strong", "warn"):
        assert contrast(ink["ink"], ink[paper]) >= 4.5, paper


@pytest.mark.parametrize(
    ("ink", "lines"), [(INK_LIGHT, LINES_LIGHT), (INK_DARK, LINES_DARK)], ids=("light", "dark")
)
def test_drawings_stand_out(ink: dict[str, str], lines: tuple[str, ...]) -> None:
    for colour in (*lines, ink["gain"], ink["loss"]):
        assert contrast(colour, ink["paper"]) >= 3, colour


def test_every_variable_has_a_colour() -> None:
    sheet = style_sheet()
    used = {part.partition(")")[0] for part in sheet.split("var(--")[1:]} - {"share"}
    light, dark = sheet.split("@media screen and (prefers-color-scheme:dark)", 1)
    dark = dark.partition("}}")[0]
    for name in used:
        assert f"--{name}:#" in light and f"--{name}:#" in dark, name


def test_no_two_methods_look_alike() -> None:
    """From the eighth on colours come again, with another marker and another dash."""
    styles = give_styles([f"m{n}" for n in range(20)], "none")
    assert len(styles) == 21 and styles["none"] == BASELINE
    of_methods = [style for name, style in styles.items() if name != "none"]
    assert len({(style.colour, style.marker) for style in of_methods}) == 20
    assert len({(style.colour, style.dash) for style in of_methods}) == 20
    assert (
        len({style.colour for style in of_methods[:7]})
        == len({style.marker for style in of_methods[:7]})
        == 7
    )
    assert len(LINES_LIGHT) == len(LINES_DARK) == len(MARKERS) == len(DASHES)
