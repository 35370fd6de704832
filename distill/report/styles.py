"""The palette, and how a method looks: in every figure of a report one colour, one marker and one dash.

Colours have names. A page says them as CSS variables, so that light, dark and paper share one drawing; a file of its own
has the light ones. Readers with normal, deuteranopic and protanopic sight can tell the colours of lines and of parts
apart, on light and on dark paper: tests/unit/test_styles.py measures that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

LINES_LIGHT: Final = ("#206fd1", "#983400", "#3d955c", "#d77306", "#2f2673", "#9f7fac", "#560232")
LINES_DARK: Final = ("#2579ae", "#c96723", "#8ce9a7", "#eeed20", "#3b63fc", "#e5cff6", "#9f5b54")
PARTS_LIGHT: Final = ("#bcc5cf", "#6b7680", "#5aa0e0", "#17497d", "#c9a227", "#d4633a", "#9a5fb0")
PARTS_DARK: Final = ("#5b6672", "#b3bcc6", "#2f6fb0", "#9fd0ff", "#dcc052", "#e8835a", "#b391c6")

INK_LIGHT: Final = {
    "paper": "#ffffff",
    "raised": "#f6f7f9",
    "ink": "#1b1f24",
    "muted": "#57606a",
    "rule": "#d7dce1",
    "link": "#0b57b0",
    "good": "#bfe3cf",
    "good-strong": "#8fd0ac",
    "bad": "#f6d3bd",
    "bad-strong": "#f0b28d",
    "warn": "#fdf1d3",
    "warn-rule": "#c98a00",
    "gain": "#2f8f62",
    "loss": "#c05a1c",
    "unmoved": "#9aa3ad",
}
INK_DARK: Final = {
    "paper": "#161b22",
    "raised": "#1e252e",
    "ink": "#e6eaee",
    "muted": "#a3adb8",
    "rule": "#36404a",
    "link": "#7db7ff",
    "good": "#1d4a34",
    "good-strong": "#27694a",
    "bad": "#5a3018",
    "bad-strong": "#7c4120",
    "warn": "#3a2f14",
    "warn-rule": "#d9a53a",
    "gain": "#5cc796",
    "loss": "#ee8f52",
    "unmoved": "#6b7580",
}

MARKERS: Final = "os^DvXP"  # matplotlib's
DASHES: Final = (None, (7, 3), (2, 3), (9, 3, 2, 3), (4, 2), (12, 4), (1, 2))  # pixels on and off


def palette(ink: Mapping[str, str], lines: Sequence[str], parts: Sequence[str]) -> dict[str, str]:
    named = {f"c{n}": colour for n, colour in enumerate(lines)}
    return {**ink, **named, **{f"p{n}": colour for n, colour in enumerate(parts)}}


LIGHT: Final = palette(INK_LIGHT, LINES_LIGHT, PARTS_LIGHT)
DARK: Final = palette(INK_DARK, LINES_DARK, PARTS_DARK)
"""Colours by name: ink and surfaces, c0 to c6 for lines, p0 to p6 for the parts of a bar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """How one name looks. `colour` is a name of the palette."""

    colour: str
    marker: str = "o"
    dash: tuple[int, ...] | None = None
    hollow: bool = False


BASELINE: Final = Style(colour="ink", dash=(5, 4), hollow=True)
PLAIN: Final = Style(colour="c0")
STAR: Final = Style(colour="ink", marker="*")


def style_of(index: int) -> Style:
    """The style of the n-th name. No two of the first 49 have the same colour and marker, or colour and dash."""
    turn, count = index // len(LINES_LIGHT), len(LINES_LIGHT)
    return Style(
        colour=f"c{index % count}",
        marker=MARKERS[(index + turn) % count],
        dash=DASHES[(index + 2 * turn) % count],
    )


def give_styles(methods: Sequence[str], baseline: str | None = None) -> dict[str, Style]:
    """A style for every method, the best first; the baseline always looks the same."""
    others = [name for name in methods if name != baseline]
    styles = {name: style_of(index) for index, name in enumerate(others)}
    return styles if baseline is None else {baseline: BASELINE, **styles}
