"""A line chart drawn, every line named at its end."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from matplotlib.axes import Axes

from kdcache.distill.report.canvas import (
    LINE_PX,
    SECOND_LINE_PX,
    Canvas,
    axis_title,
    label_lines,
    marker_style,
    paint,
    set_ticks,
    width_px,
)
from kdcache.distill.report.charts import Limit, Line, LineChart, is_near, padded
from kdcache.distill.report.styles import Style

WIDTH_PX, HEIGHT_PX = 480.0, 330.0
TOP_PX, BOTTOM_PX, LEFT_PX = 34.0, 44.0, 50.0
LEAD_PX = 22.0  # from the plot to the labels at its right
LEVEL_PX = 1.0  # a label that has moved by more is not beside its point
MARKED_POINTS, MARKED_LINES = 12, 8  # beyond these only the ends of lines have markers


def paint_lines(chart: LineChart) -> Canvas:
    canvas = Canvas(WIDTH_PX, HEIGHT_PX)
    values = _heights(chart)
    near = [limit for limit in chart.limits if chart.log_y or is_near(limit.at, values)]
    names = [line.name for line in chart.lines] + [_limit_text(limit, near) for limit in chart.limits]
    right = WIDTH_PX - width_px(names) - LEAD_PX - 18
    axes = canvas.axes(LEFT_PX, right, TOP_PX, HEIGHT_PX - BOTTOM_PX)
    _scale_lines(axes, chart, [*values, *(limit.at for limit in near)])
    canvas.grid(axes, "both")
    canvas.text((LEFT_PX + right) / 2, HEIGHT_PX - 12, chart.x_title, **axis_title(anchor="center"))
    canvas.text(2, TOP_PX - 18, chart.y_title, **axis_title())
    for limit in near:
        _limit(axes, limit)
    for line in chart.lines:
        _line(axes, line, crowded=len(chart.lines) > MARKED_LINES)
    _name_lines(canvas, axes, chart, near, right)
    return canvas


def _heights(chart: LineChart) -> list[float]:
    values = [value for line in chart.lines for stroke in line.strokes for _, value in stroke]
    values += [end for line in chart.lines for _, low, high in line.intervals for end in (low, high)]
    return values


def _scale_lines(axes: Axes, chart: LineChart, values: Sequence[float]) -> None:
    across = [at for line in chart.lines for stroke in line.strokes for at, _ in stroke]
    if chart.log_x:
        space = (max(across) / min(across)) ** 0.06 if max(across) > min(across) else 2.0
        axes.set_xscale("log")
        axes.set_xlim(min(across) / space, max(across) * space)
    else:
        axes.set_xlim(min(0.0, *across), max(across) or 1.0)
    if chart.log_y:
        axes.set_yscale("log")
        space = (max(values) / min(values)) ** 0.06 if max(values) > min(values) else 2.0
        axes.set_ylim(min(values) / space, max(values) * space)
    else:
        axes.set_ylim(*padded(values, least=1e-6, bounds=chart.bounds))
    set_ticks(axes.xaxis, chart.log_x, chart.x_ticks)
    set_ticks(axes.yaxis, chart.log_y, None)


def _line(axes: Axes, line: Line, *, crowded: bool) -> None:
    colour = paint(line.style.colour)
    if line.raw:
        axes.plot(*zip(*line.raw, strict=True), color=colour, alpha=0.3, linewidth=0.8, clip_on=False)
    for at, low, high in line.intervals:
        axes.plot([at, at], [low, high], color=colour, alpha=0.55, linewidth=3, clip_on=False)
    dash = (0, line.style.dash) if line.style.dash else "solid"
    for stroke in line.strokes:
        axes.plot(
            *zip(*stroke, strict=True),
            color=colour,
            linewidth=1.2 if crowded else 2,
            linestyle=dash,
            clip_on=False,
        )
        marked = stroke if not crowded and len(stroke) <= MARKED_POINTS else stroke[-1:]
        axes.plot(*zip(*marked, strict=True), **marker_style(line.style, 7.4), clip_on=False, zorder=3)


def _limit(axes: Axes, limit: Limit) -> None:
    if limit.low is not None and limit.high is not None:
        axes.axhspan(limit.low, limit.high, color=paint("muted"), alpha=0.14, linewidth=0, clip_on=False)
    axes.axhline(limit.at, color=paint("muted"), linewidth=1.4, linestyle=(0, (2, 3)), clip_on=False)


def _limit_text(limit: Limit, near: Sequence[Limit]) -> str:
    """Its name; with its value where the axis leaves it out."""
    if limit in near:
        return limit.name
    first, comma, second = limit.name.partition(", ")
    return f"{first} {limit.at:.2f}{comma}{second}"


def _name_lines(canvas: Canvas, axes: Axes, chart: LineChart, near: Sequence[Limit], right: float) -> None:
    """Names at the right, each with a lead to the last point of its line; limits that lie outside at the edge.

    Leads to single points would cross the plot and each other. They are drawn only if every name is level with its point.
    """

    def pixel(x: float, y: float) -> tuple[float, float]:
        at, up = axes.transData.transform((x, y))
        return float(at), HEIGHT_PX - float(up)

    low, _ = axes.get_ylim()
    ends = [pixel(*_end(line)) for line in chart.lines]
    across = axes.get_xlim()[1]
    limits = [
        pixel(across, limit.at)[1] if limit in near else HEIGHT_PX - BOTTOM_PX if limit.at < low else TOP_PX
        for limit in chart.limits
    ]
    wanted = [y for _, y in ends] + limits
    limit_texts = [_limit_text(limit, near) for limit in chart.limits]
    names = [line.name for line in chart.lines] + limit_texts
    heights = [LINE_PX + SECOND_LINE_PX * (len(label_lines(name)) - 1) for name in names]
    places = spread(wanted, heights, TOP_PX, HEIGHT_PX - BOTTOM_PX)
    level = all(abs(place - y) < LEVEL_PX for (_, y), place in zip(ends, places, strict=False))
    led = level or any(len(stroke) > 1 for line in chart.lines for stroke in line.strokes)
    for line, (x, y), place in zip(chart.lines, ends, places, strict=False):
        if led:
            canvas.line([x + 6, right + LEAD_PX - 6], [y, place], width=0.8, alpha=0.7)
        canvas.mark(right + LEAD_PX + 1, place, line.style)
        canvas.label(right + LEAD_PX + 10, place, line.name)
    for limit, text, y, place in zip(chart.limits, limit_texts, limits, places[len(ends) :], strict=True):
        if limit in near:
            canvas.line([right, right + LEAD_PX + 6], [y, place], width=0.8, alpha=0.7)
        else:
            arrow = Style(colour="muted", marker="v" if limit.at < low else "^")
            canvas.mark(right + LEAD_PX + 1, place, arrow)
        canvas.label(right + LEAD_PX + 10, place, text, colour="muted")


def _end(line: Line) -> tuple[float, float]:
    """Where its name points to: the end of a stroke, the one in the middle of those that reach furthest."""
    furthest = max(stroke[-1][0] for stroke in line.strokes)
    ends = sorted((s[-1] for s in line.strokes if s[-1][0] == furthest), key=lambda end: end[1])
    return ends[len(ends) // 2]


def spread(
    wanted: Sequence[float], heights_px: Sequence[float], low_px: float, high_px: float
) -> list[float]:
    """Centres near those wanted, in their order, without overlaps if the heights fit between low and high.

    The mean of the places that pushing down gives and of those that pushing up gives: both keep the gaps, so it does.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    gaps = [(heights_px[one] + heights_px[other]) / 2 for one, other in pairwise(order)]
    squeeze = min(1.0, (high_px - low_px) / (sum(gaps) or 1.0))
    gaps = [gap * squeeze for gap in gaps]
    above = [0.0, *accumulate(gaps)]
    held = [
        min(max(wanted[index], low_px + before), high_px - (above[-1] - before))
        for index, before in zip(order, above, strict=True)
    ]
    down, up = list(held), list(held)
    for k, gap in enumerate(gaps, start=1):
        down[k] = max(held[k], down[k - 1] + gap)
    for k in range(len(gaps) - 1, -1, -1):
        up[k] = min(held[k], up[k + 1] - gaps[k])
    places = [0.0] * len(wanted)
    for k, index in enumerate(order):
        places[index] = (down[k] + up[k]) / 2
    return places
