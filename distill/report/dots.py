"""A row a name: the mean, its interval and every seed on a line; an inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from kdcache.distill.report.axes import (
    Scale,
    drawing,
    label,
    nice_ticks,
    number_text,
    padded,
    width_px,
    x_axis,
)
from kdcache.distill.report.markup import Markup, join, tag
from kdcache.distill.report.styles import Look, marker

WIDTH_PX, ROW_PX, TOP_PX, BOTTOM_PX = 480.0, 26.0, 24.0, 44.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DotRow:
    """One name."""

    name: str
    look: Look
    mean: float
    seeds: Sequence[float]
    text: str  # at the end of the row
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A vertical line through all rows."""

    name: str
    at: float


def draw_rows(
    rows: Sequence[DotRow],
    *,
    title: str,
    x_title: str,
    marks: Sequence[Mark] = (),
    stretch: tuple[float, float] | None = None,  # of the x axis, where two charts share one
) -> Markup:
    height = TOP_PX + ROW_PX * len(rows) + BOTTOM_PX
    left = width_px([row.name for row in rows]) + 24
    right = WIDTH_PX - width_px([row.text for row in rows]) - 10
    low, high = stretch or stretch_of(rows, marks)
    x = Scale(low=low, high=high, start_px=left, end_px=right)
    bottom = height - BOTTOM_PX
    return drawing(
        WIDTH_PX,
        height,
        title,
        x_axis(x, {at: number_text(at) for at in nice_ticks(low, high, 4)}, bottom, TOP_PX, x_title),
        *(_mark(mark, x, bottom) for mark in marks),
        *(_row(row, x, TOP_PX + ROW_PX * (place + 0.5), left) for place, row in enumerate(rows)),
    )


def stretch_of(rows: Sequence[DotRow], marks: Sequence[Mark] = ()) -> tuple[float, float]:
    """The values that an axis has to show."""
    values = [mark.at for mark in marks]
    for row in rows:
        values += [row.mean, *row.seeds, *(row.interval or ())]
    return padded(values, least=0.5)


def _row(row: DotRow, x: Scale, y: float, left: float) -> Markup:
    low, high = row.interval or (row.mean, row.mean)
    return join(
        label(row.name, left - 20, y, anchor="end"),
        marker(row.look, left - 10, y, 4.0),
        tag("line", x1=x(low), x2=x(high), y1=y, y2=y, class_=f"{row.look.class_} interval"),
        *(marker(row.look, x(seed), y, 4.2, seed=True) for seed in row.seeds if len(row.seeds) > 1),
        marker(row.look, x(row.mean), y, 5.0),
        label(row.text, WIDTH_PX, y, anchor="end", class_="tick"),
    )


def _mark(mark: Mark, x: Scale, bottom: float) -> Markup:
    at = x(mark.at)
    return join(
        tag("line", x1=at, x2=at, y1=TOP_PX - 4, y2=bottom, class_="limit"),
        label(mark.name, at, TOP_PX - 14, anchor="middle", class_="muted"),
    )
