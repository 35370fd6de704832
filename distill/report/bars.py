"""Bars: seconds stacked by part, and differences on both sides of zero; inline SVGs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdcache.distill.report.axes import Scale, drawing, label, nice_ticks, number_text, width_px, x_axis
from kdcache.distill.report.markup import Markup, join, tag

WIDTH_PX, ROW_PX, TOP_PX, BOTTOM_PX = 480.0, 26.0, 8.0, 44.0
BAR_PX = 17.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """One bar."""

    name: str
    values: Sequence[float]  # one a part, at least 0
    text: str  # at its end


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One bar from zero; `seeds` are drawn on it."""

    name: str
    value: float
    seeds: Sequence[float]
    text: str


def draw_stacks(stacks: Sequence[Stack], parts: Mapping[str, str], *, title: str, x_title: str) -> Markup:
    """One bar a stack; `parts` are names and classes of the style sheet, p0 to p6."""
    height = TOP_PX + ROW_PX * len(stacks) + BOTTOM_PX
    left = width_px([stack.name for stack in stacks]) + 8
    right = WIDTH_PX - width_px([stack.text for stack in stacks]) - 12
    longest = max(sum(stack.values) for stack in stacks) or 1.0
    x = Scale(low=0.0, high=longest * 1.02, start_px=left, end_px=right)
    drawn = []
    for place, stack in enumerate(stacks):
        y = TOP_PX + ROW_PX * (place + 0.5)
        drawn.append(label(stack.name, left - 6, y, anchor="end"))
        begin = 0.0
        for (part, class_), value in zip(parts.items(), stack.values, strict=True):
            drawn.append(_segment(part, class_, x(begin), x(begin + value), y, value))
            begin += value
        drawn.append(label(stack.text, WIDTH_PX, y, anchor="end", class_="tick"))
    ticks = {at: number_text(at) for at in nice_ticks(0.0, longest, 4)}
    return drawing(WIDTH_PX, height, title, x_axis(x, ticks, height - BOTTOM_PX, TOP_PX, x_title), *drawn)


def _segment(part: str, class_: str, start: float, end: float, y: float, value: float) -> Markup:
    return tag(
        "rect",
        tag("title", f"{part}: {value:.3g} s"),
        x=start,
        y=y - BAR_PX / 2,
        width=max(0.0, end - start),
        height=BAR_PX,
        class_=class_,
    )


def legend(parts: Mapping[str, str]) -> Markup:
    """The parts' colours and names, as a list that wraps."""
    entries = (tag("li", tag("span", class_=f"swatch {class_}"), part) for part, class_ in parts.items())
    return tag("ul", *entries, class_="legend")


def draw_differences(rows: Sequence[Bar], *, title: str, x_title: str) -> Markup:
    """One bar a row, up or down from zero."""
    height = TOP_PX + ROW_PX * len(rows) + BOTTOM_PX
    left = width_px([row.name for row in rows]) + 8
    right = WIDTH_PX - width_px([row.text for row in rows]) - 12
    values = [value for row in rows for value in (row.value, *row.seeds)]
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.04 * (high - low) or 1.0
    x = Scale(low=low - room, high=high + room, start_px=left, end_px=right)
    ticks = {at: number_text(at) for at in nice_ticks(x.low, x.high, 4)}
    bottom = height - BOTTOM_PX
    return drawing(
        WIDTH_PX,
        height,
        title,
        x_axis(x, ticks, bottom, TOP_PX, x_title),
        *(_difference(row, x, TOP_PX + ROW_PX * (k + 0.5), left) for k, row in enumerate(rows)),
        tag("line", x1=x(0), x2=x(0), y1=TOP_PX, y2=bottom, class_="axis"),
    )


def _difference(row: Bar, x: Scale, y: float, left: float) -> Markup:
    start, end = sorted((x(0), x(row.value)))
    return join(
        label(row.name, left - 6, y, anchor="end"),
        tag("rect", x=start, y=y - BAR_PX / 2, width=end - start, height=BAR_PX, class_=_side(row.value)),
        *(tag("circle", cx=x(seed), cy=y, r=2.6, class_="dot") for seed in row.seeds),
        label(row.text, WIDTH_PX, y, anchor="end", class_="tick"),
    )


def _side(value: float) -> str:
    return "gain" if value >= 0 else "loss"
