"""Axes of the page's charts: from values to pixels of an SVG, and the values that get a tick."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdcache.distill.report.markup import Markup, join, tag

FONT_PX = 13.0
CHARACTER_PX = 7.6  # of a wide sans at FONT_PX: labels are given room before any font is known
LINE_PX = 16.0
LONGEST_LABEL = 24  # characters
TITLE_CHARACTERS = 44  # of an axis


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """A stretch of values on a stretch of pixels."""

    low: float
    high: float
    start_px: float
    end_px: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value))
            if self.logarithmic
            else (self.low, self.high, value)
        )
        return self.start_px + (at - low) / (high - low) * (self.end_px - self.start_px)


def padded(values: Sequence[float], *, share: float = 0.06, least: float = 0.0) -> tuple[float, float]:
    """The stretch that values take, with room at both ends; at least `least` wide, and never of no width."""
    low, high = min(values), max(values)
    room = max((high - low) * share, (least - (high - low)) / 2, 1e-9 if low == high == 0 else 0.0)
    if low == high and room == 0:
        room = abs(low) * share
    return low - room, high + room


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) from low to high."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 10) for n in range(first, last + 1)]


def number_text(value: float) -> str:
    """A tick as it is read: 40000 as 40k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def shortened(text: str, longest: int = LONGEST_LABEL) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def width_px(texts: Sequence[str]) -> float:
    """Room for the longest of some labels."""
    return CHARACTER_PX * max((len(shortened(text)) for text in texts), default=0)


def label(
    text: str,
    x: float,
    y: float,
    *,
    anchor: str = "start",
    class_: str | None = None,
    longest: int = LONGEST_LABEL,  # characters
) -> Markup:
    """One line of text around y; a long one is cut, with the whole as its tooltip."""
    short = shortened(text, longest)
    tooltip = tag("title", text) if short != text else None
    return tag("text", short, tooltip, x=x, y=y + FONT_PX * 0.35, text_anchor=anchor, class_=class_)


def spread(wanted: Sequence[float], gap_px: float, low_px: float, high_px: float) -> list[float]:
    """Places near those wanted, in their order, `gap_px` apart where the room from low to high allows it.

    The mean of the places that pushing down gives and of those that pushing up gives: both keep the gap, so it does.
    """
    count = len(wanted)
    gap_px = min(gap_px, (high_px - low_px) / max(1, count - 1))
    order = sorted(range(count), key=lambda index: wanted[index])
    room = [(low_px + gap_px * k, high_px - gap_px * (count - 1 - k)) for k in range(count)]
    held = [min(max(wanted[index], low), high) for index, (low, high) in zip(order, room, strict=True)]
    down, up = list(held), list(held)
    for k in range(1, count):
        down[k] = max(held[k], down[k - 1] + gap_px)
    for k in range(count - 2, -1, -1):
        up[k] = min(held[k], up[k + 1] - gap_px)
    places = [0.0] * count
    for k, index in enumerate(order):
        places[index] = (down[k] + up[k]) / 2
    return places


def x_axis(scale: Scale, ticks: Mapping[float, str], y: float, top: float, title: str) -> Markup:
    """Ticks, their grid lines from `top` down to `y`, and what is measured."""
    return join(
        *(
            join(
                tag("line", x1=scale(at), x2=scale(at), y1=top, y2=y, class_="grid"),
                label(text, scale(at), y + 12, anchor="middle", class_="tick"),
            )
            for at, text in ticks.items()
        ),
        tag("line", x1=scale.start_px, x2=scale.end_px, y1=y, y2=y, class_="axis"),
        label(
            title,
            (scale.start_px + scale.end_px) / 2,
            y + 32,
            anchor="middle",
            class_="tick",
            longest=TITLE_CHARACTERS,
        ),
    )


def y_axis(scale: Scale, ticks: Mapping[float, str], x: float, right: float, title: str) -> Markup:
    return join(
        *(
            join(
                tag("line", x1=x, x2=right, y1=scale(at), y2=scale(at), class_="grid"),
                label(text, x - 6, scale(at), anchor="end", class_="tick"),
            )
            for at, text in ticks.items()
        ),
        label(title, 2, scale.end_px - 18, class_="tick"),
    )


def drawing(width: float, height: float, title: str, *children: Markup) -> Markup:
    """An SVG that scales with the page and says what it shows."""
    return tag(
        "svg",
        tag("title", title),
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=title,
        width=width,
        height=height,
    )
