"""Lines over steps, time, budgets or views, each named at its end, with bands and limits; an inline SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdcache.distill.report.axes import (
    LINE_PX,
    Scale,
    drawing,
    label,
    nice_ticks,
    number_text,
    padded,
    spread,
    width_px,
    x_axis,
    y_axis,
)
from kdcache.distill.report.markup import Markup, join, tag
from kdcache.distill.report.styles import Look, marker

WIDTH_PX, HEIGHT_PX = 480.0, 330.0
TOP_PX, BOTTOM_PX, LEFT_PX = 34.0, 44.0, 46.0
MARKED_POINTS, MARKED_LINES = 12, 8  # with more points or lines only ends are marked
LEAD_PX = 22.0  # from the axis to the names

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One name's values: a stroke a seed, or one with an interval at every point."""

    name: str
    look: Look
    strokes: Sequence[Sequence[Point]]  # (x, y), x ascending; none is empty
    intervals: Sequence[tuple[float, float, float]] = ()  # (x, low, high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """A horizontal line across the chart: the teacher, or what no store can surpass."""

    name: str
    y: float
    low: float | None = None  # of its interval
    high: float | None = None


def draw_lines(
    lines: Sequence[Line],
    *,
    title: str,  # what is seen, for those who cannot
    x_title: str,
    y_title: str,
    limits: Sequence[Limit] = (),
    logarithmic: bool = False,  # the x axis
    x_ticks: Mapping[float, str] | None = None,  # round numbers where not given
) -> Markup:
    names = [line.name for line in lines] + [limit.name for limit in limits]
    right = WIDTH_PX - width_px(names) - LEAD_PX - 18
    x, y = _scales(lines, limits, right, logarithmic)
    shown = x_ticks or {at: number_text(at) for at in nice_ticks(x.low, x.high)}
    ends = [_end(line) for line in lines]
    heights = [y(end[1]) for end in ends] + [y(limit.y) for limit in limits]
    places = spread(heights, LINE_PX, TOP_PX, HEIGHT_PX - BOTTOM_PX)
    return drawing(
        WIDTH_PX,
        HEIGHT_PX,
        title,
        y_axis(y, {at: number_text(at) for at in nice_ticks(y.low, y.high)}, LEFT_PX, right, y_title),
        x_axis(x, shown, HEIGHT_PX - BOTTOM_PX, TOP_PX, x_title),
        *(_limit(limit, y, right, place) for limit, place in zip(limits, places[len(lines) :], strict=True)),
        *(_line(line, x, y, all_marked=len(lines) <= MARKED_LINES) for line in lines),
        *(
            _name(line, x(end[0]), y(end[1]), right, place)
            for line, end, place in zip(lines, ends, places, strict=False)
        ),
    )


def _scales(
    lines: Sequence[Line], limits: Sequence[Limit], right: float, logarithmic: bool
) -> tuple[Scale, Scale]:
    points = [point for line in lines for stroke in line.strokes for point in stroke]
    across = [at for at, _ in points] + [at for line in lines for at, _, _ in line.intervals]
    up = [value for _, value in points]
    up += [value for line in lines for _, low, high in line.intervals for value in (low, high)]
    up += [value for limit in limits for value in (limit.y, limit.low, limit.high) if value is not None]
    low, high = padded(up, least=1e-6)
    if logarithmic:
        room = (max(across) / min(across)) ** 0.06 if max(across) > min(across) else 2.0
        first, last = min(across) / room, max(across) * room
    else:
        first, last = min(0.0, *across), max(across) or 1.0
    x = Scale(low=first, high=last, start_px=LEFT_PX, end_px=right, logarithmic=logarithmic)
    return x, Scale(low=low, high=high, start_px=HEIGHT_PX - BOTTOM_PX, end_px=TOP_PX)


def _end(line: Line) -> Point:
    """Where the name points to: the mean over the seeds' last points, at the last of them."""
    lasts = [stroke[-1] for stroke in line.strokes]
    return max(at for at, _ in lasts), sum(value for _, value in lasts) / len(lasts)


def _line(line: Line, x: Scale, y: Scale, *, all_marked: bool) -> Markup:
    look, drawn = line.look, []
    for stroke in line.strokes:
        path = "M" + "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value in stroke)
        drawn.append(tag("path", d=path, class_=f"{look.class_} line", stroke_dasharray=look.dash))
        marked = stroke if all_marked and len(stroke) <= MARKED_POINTS else stroke[-1:]
        drawn += [marker(look, x(at), y(value), 3.2) for at, value in marked]
    bars = [
        tag("line", x1=x(at), x2=x(at), y1=y(low), y2=y(high), class_=f"{look.class_} interval")
        for at, low, high in line.intervals
    ]
    return join(*bars, *drawn)


def _name(line: Line, x_px: float, y_px: float, right: float, place: float) -> Markup:
    lead = f"M{x_px + 6:.1f} {y_px:.1f}L{right + LEAD_PX - 6:.1f} {place:.1f}"
    return join(
        tag("path", d=lead, class_="lead"),
        marker(line.look, right + LEAD_PX + 1, place, 3.6),
        label(line.name, right + LEAD_PX + 10, place),
    )


def _limit(limit: Limit, y: Scale, right: float, place: float) -> Markup:
    band = None
    if limit.low is not None and limit.high is not None:
        height = y(limit.low) - y(limit.high)
        band = tag("rect", x=LEFT_PX, y=y(limit.high), width=right - LEFT_PX, height=height, class_="band")
    at = y(limit.y)
    return join(
        band,
        tag("line", x1=LEFT_PX, x2=right, y1=at, y2=at, class_="limit"),
        tag("path", d=f"M{right:.1f} {at:.1f}L{right + LEAD_PX + 6:.1f} {place:.1f}", class_="lead"),
        label(limit.name, right + LEAD_PX + 10, place, class_="muted"),
    )
