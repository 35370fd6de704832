"""Charts drawn: a function for each class of charts.py, on the canvas of canvas.py."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from kdcache.distill.report.canvas import (
    FONT_PX,
    SMALL_PX,
    Canvas,
    Drawing,
    draw_with,
    marker_style,
    paint,
    width_px,
)
from kdcache.distill.report.charts import (
    BarChart,
    Chart,
    ClassChart,
    DotChart,
    DotRow,
    Limit,
    Line,
    LineChart,
    RankChart,
    RankColumn,
    is_near,
    padded,
)
from kdcache.distill.report.model import MINUS, Figure
from kdcache.distill.report.styles import Look

WIDTH_PX, HEIGHT_PX = 480.0, 330.0
TOP_PX, BOTTOM_PX, LEFT_PX = 34.0, 44.0, 46.0
ROW_PX, BAR_SHARE = 26.0, 0.64
LINE_PX = 16.0  # between labels
LEAD_PX = 22.0  # from the plot to the labels at its right
MARKED_POINTS, MARKED_LINES = 12, 8  # beyond these only the ends of lines have markers
TITLE_CHARACTERS = 44  # of an axis

logger = logging.getLogger(__name__)


def draw(figure: Figure) -> Drawing | None:
    """The drawing of a figure. None, with a line in the log, if drawing fails: a finished run is not lost for a picture."""
    try:
        return draw_with(lambda: paint_chart(figure.chart), figure.name, figure.alt)
    except Exception as error:  # noqa: BLE001
        logger.warning("the figure %r could not be drawn: %s: %s", figure.title, type(error).__name__, error)
        return None


def paint_chart(chart: Chart) -> Canvas:
    return _PAINTERS[type(chart)](chart)


def spread(wanted: Sequence[float], gap_px: float, low_px: float, high_px: float) -> list[float]:
    """Places near those wanted, in their order, `gap_px` apart where there is space for that from low to high.

    The mean of the places that pushing down gives and of those that pushing up gives: both keep the gap, so it does.
    """
    count = len(wanted)
    gap_px = min(gap_px, (high_px - low_px) / max(1, count - 1))
    order = sorted(range(count), key=lambda index: wanted[index])
    space = [(low_px + gap_px * k, high_px - gap_px * (count - 1 - k)) for k in range(count)]
    held = [min(max(wanted[index], low), high) for index, (low, high) in zip(order, space, strict=True)]
    down, up = list(held), list(held)
    for k in range(1, count):
        down[k] = max(held[k], down[k - 1] + gap_px)
    for k in range(count - 2, -1, -1):
        up[k] = min(held[k], up[k + 1] - gap_px)
    places = [0.0] * count
    for k, index in enumerate(order):
        places[index] = (down[k] + up[k]) / 2
    return places


def tick_text(value: float, _: object = None) -> str:
    """A tick as it is read: 40000 as 40k."""
    text = f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{round(value, 10):g}"
    return text.replace("-", MINUS)


# Lines


def _lines(chart: LineChart) -> Canvas:
    canvas = Canvas(WIDTH_PX, HEIGHT_PX)
    values = _heights(chart)
    near = [limit for limit in chart.limits if chart.log_y or is_near(limit.at, values)]
    names = [line.name for line in chart.lines] + [_limit_text(limit, near) for limit in chart.limits]
    right = WIDTH_PX - width_px(names) - LEAD_PX - 18
    axes = canvas.axes(LEFT_PX, right, TOP_PX, HEIGHT_PX - BOTTOM_PX)
    _scale_lines(axes, chart, [*values, *(limit.at for limit in near)])
    canvas.grid(axes, "both")
    canvas.text((LEFT_PX + right) / 2, HEIGHT_PX - 12, chart.x_title, **_axis_title(anchor="center"))
    canvas.text(2, TOP_PX - 18, chart.y_title, **_axis_title())
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
    _tick(axes.xaxis, chart.log_x, chart.x_ticks)
    _tick(axes.yaxis, chart.log_y, None)


def _tick(axis: Any, logarithmic: bool, ticks: Mapping[float, str] | None) -> None:
    """Round numbers, or those given with their texts."""
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    if ticks is not None:
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: ticks.get(value, tick_text(value))))
        return
    low, high = axis.get_view_interval()
    few = high / low < 50 if logarithmic else False
    axis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if few else (1,)) if logarithmic else MaxNLocator(6, steps=[1, 2, 5, 10])
    )
    axis.set_major_formatter(FuncFormatter(tick_text))


def _line(axes: Axes, line: Line, *, crowded: bool) -> None:
    colour = paint(line.look.colour)
    if line.raw:
        axes.plot(*zip(*line.raw, strict=True), color=colour, alpha=0.3, linewidth=0.8, clip_on=False)
    for at, low, high in line.intervals:
        axes.plot([at, at], [low, high], color=colour, alpha=0.55, linewidth=3, clip_on=False)
    dash = (0, line.look.dash) if line.look.dash else "solid"
    for stroke in line.strokes:
        axes.plot(
            *zip(*stroke, strict=True),
            color=colour,
            linewidth=1.2 if crowded else 2,
            linestyle=dash,
            clip_on=False,
        )
        marked = stroke if not crowded and len(stroke) <= MARKED_POINTS else stroke[-1:]
        axes.plot(*zip(*marked, strict=True), **marker_style(line.look, 7.4), clip_on=False, zorder=3)


def _limit(axes: Axes, limit: Limit) -> None:
    if limit.low is not None and limit.high is not None:
        axes.axhspan(limit.low, limit.high, color=paint("muted"), alpha=0.14, linewidth=0, clip_on=False)
    axes.axhline(limit.at, color=paint("muted"), linewidth=1.4, linestyle=(0, (2, 3)), clip_on=False)


def _limit_text(limit: Limit, near: Sequence[Limit]) -> str:
    """Its name; with its value where the axis leaves it out."""
    return limit.name if limit in near else f"{limit.name} {limit.at:.2f}"


def _name_lines(canvas: Canvas, axes: Axes, chart: LineChart, near: Sequence[Limit], right: float) -> None:
    """Names at the right, each with a lead to the last point of its line; limits that lie outside at the edge."""

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
    places = spread([y for _, y in ends] + limits, LINE_PX, TOP_PX, HEIGHT_PX - BOTTOM_PX)
    for line, (x, y), place in zip(chart.lines, ends, places, strict=False):
        canvas.line([x + 6, right + LEAD_PX - 6], [y, place], width=0.8, alpha=0.7)
        canvas.mark(right + LEAD_PX + 1, place, line.look)
        canvas.text(right + LEAD_PX + 10, place, line.name)
    for limit, y, place in zip(chart.limits, limits, places[len(ends) :], strict=True):
        if limit in near:
            canvas.line([right, right + LEAD_PX + 6], [y, place], width=0.8, alpha=0.7)
        else:
            arrow = Look(colour="muted", marker="v" if limit.at < low else "^")
            canvas.mark(right + LEAD_PX + 1, place, arrow)
        canvas.text(right + LEAD_PX + 10, place, _limit_text(limit, near), colour="muted")


def _end(line: Line) -> tuple[float, float]:
    """Where its name points to: the end of a stroke, the one in the middle of those that reach furthest."""
    furthest = max(stroke[-1][0] for stroke in line.strokes)
    ends = sorted((s[-1] for s in line.strokes if s[-1][0] == furthest), key=lambda end: end[1])
    return ends[len(ends) // 2]


# Rows


def _row_axes(
    canvas: Canvas,
    names: Sequence[str],
    texts: Sequence[str],
    *,
    top: float,
    x_title: str,
    mark_px: float = 0.0,
) -> Axes:
    """A plot with a row for each name at its left, and texts at its right; y is 0, 1, ... from the top."""
    left = width_px(names) + 8 + mark_px
    right = WIDTH_PX - width_px(texts) * SMALL_PX / FONT_PX - 12
    bottom = canvas.height - BOTTOM_PX
    axes = canvas.axes(left, right, top, bottom)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.yaxis.set_major_locator(NullLocator())
    canvas.grid(axes, "x")
    row_px = (bottom - top) / len(names)
    for place, name in enumerate(names):
        canvas.text(left - 6 - mark_px, top + row_px * (place + 0.5), name, anchor="right")
    for place, text in enumerate(texts):
        canvas.text(
            WIDTH_PX, top + row_px * (place + 0.5), text, anchor="right", size=SMALL_PX, colour="muted"
        )
    canvas.text((left + right) / 2, canvas.height - 12, x_title, **_axis_title(anchor="center"))
    return axes


def _axis_title(**more: Any) -> dict[str, Any]:
    return {"colour": "muted", "size": SMALL_PX, "longest": TITLE_CHARACTERS, **more}


def _dots(chart: DotChart) -> Canvas:
    top = 24.0
    canvas = Canvas(WIDTH_PX, top + ROW_PX * len(chart.rows) + BOTTOM_PX)
    names, texts = [row.name for row in chart.rows], [row.text for row in chart.rows]
    axes = _row_axes(canvas, names, texts, top=top, x_title=chart.x_title, mark_px=14)
    axes.set_xlim(*chart.stretch)
    _tick(axes.xaxis, False, None)
    left, right = (float(axes.transAxes.transform((share, 0))[0]) for share in (0, 1))
    for limit in chart.limits:
        at = float(axes.transData.transform((limit.at, 0))[0])
        if chart.stretch[0] <= limit.at <= chart.stretch[1]:
            axes.axvline(limit.at, color=paint("muted"), linewidth=1.4, linestyle=(0, (2, 3)), clip_on=False)
            canvas.text(at, 10, limit.name, colour="muted", anchor="center")
            continue
        beyond = limit.at > chart.stretch[1]
        text = f"{limit.name} {limit.at:.2f}"
        canvas.text(
            *(right - 10, 10) if beyond else (left + 10, 10),
            text,
            colour="muted",
            anchor="right" if beyond else "left",
        )
        canvas.mark(right if beyond else left, 10, Look(colour="muted", marker=">" if beyond else "<"))
    for place, row in enumerate(chart.rows):
        _dot_row(axes, row, place)
        canvas.mark(left - 9, top + ROW_PX * (place + 0.5), row.look)
    return canvas


def _dot_row(axes: Axes, row: DotRow, place: int) -> None:
    if row.interval:
        axes.plot(
            row.interval, [place] * 2, color=paint(row.look.colour), alpha=0.55, linewidth=3, clip_on=False
        )
    if len(row.seeds) > 1:
        style = marker_style(row.look, 8.0, seed=True)
        axes.plot(row.seeds, [place] * len(row.seeds), **style, clip_on=False, zorder=3)
    axes.plot([row.mean], [place], **marker_style(row.look, 9.0), clip_on=False, zorder=4)


def _bars(chart: BarChart) -> Canvas:
    legend = _legend_places(list(chart.parts or ()))
    top = 8.0 + LINE_PX * (1 + legend[-1][1] if legend else 0)
    canvas = Canvas(WIDTH_PX, top + ROW_PX * len(chart.bars) + BOTTOM_PX)
    names, texts = [bar.name for bar in chart.bars], [bar.text for bar in chart.bars]
    axes = _row_axes(canvas, names, texts, top=top, x_title=chart.x_title)
    ends = [value for bar in chart.bars for value in (0.0, sum(bar.values), *bar.seeds)]
    low, high = min(ends), max(ends)
    axes.set_xlim(
        low - 0.04 * (high - low) if low < 0 else 0.0, high + 0.04 * (high - low) if high > low else 1.0
    )
    _tick(axes.xaxis, False, None)
    for place, bar in enumerate(chart.bars):
        begin, parts = 0.0, chart.parts or {"": "gain" if sum(bar.values) >= 0 else "loss"}
        for (part, colour), value in zip(parts.items(), bar.values, strict=True):
            (drawn,) = axes.barh(place, value, BAR_SHARE, left=begin, color=paint(colour), clip_on=False)
            drawn.set_gid(canvas.tooltip(f"{part}: {value:.3g} s" if part else f"{bar.name}: {bar.text}"))
            begin += value
        for seed in bar.seeds:
            style = marker_style(Look(colour="ink"), 8.0, seed=True)
            axes.plot([seed], [place], **style, clip_on=False, zorder=3)
    axes.axvline(0, color=paint("muted"), linewidth=1, clip_on=False)
    for (part, colour), (x, line) in zip((chart.parts or {}).items(), legend, strict=True):
        canvas.mark(x + 6, 8 + LINE_PX * line, Look(colour=colour, marker="s"), 10.0)
        canvas.text(x + 16, 8 + LINE_PX * line, part, size=SMALL_PX)
    return canvas


def _legend_places(names: Sequence[str]) -> list[tuple[float, int]]:
    """(pixels from the left, line) of each name of a legend that wraps."""
    places, x, line = [], 0.0, 0
    for name in names:
        width = 16 + width_px([name]) * SMALL_PX / FONT_PX + 10
        if x and x + width > WIDTH_PX:
            x, line = 0.0, line + 1
        places.append((x, line))
        x += width
    return places


def _classes(chart: ClassChart) -> Canvas:
    legend = _legend_places(list(chart.iou))
    top = 14.0 + LINE_PX * (1 + legend[-1][1])
    row_px = ROW_PX * 0.8 + 2.5 * (len(chart.iou) - 1)
    canvas = Canvas(WIDTH_PX, top + row_px * len(chart.classes) + BOTTOM_PX)
    axes = _row_axes(canvas, chart.classes, [""], top=top, x_title=chart.x_title)
    axes.set_xlim(0, 100)
    _tick(axes.xaxis, False, {float(at): str(at) for at in range(0, 101, 20)})
    for index, (name, values) in enumerate(chart.iou.items()):
        beside = 0.7 * ((index + 0.5) / len(chart.iou) - 0.5)
        known = [(value, place + beside) for place, value in enumerate(values) if value is not None]
        if known:
            axes.plot(*zip(*known, strict=True), **marker_style(chart.looks[name], 6.4), clip_on=False)
        x, line = legend[index]
        canvas.mark(x + 6, 8 + LINE_PX * line, chart.looks[name])
        canvas.text(x + 16, 8 + LINE_PX * line, name, size=SMALL_PX)
    return canvas


# Rankings


RANK_LEFT_PX, RANK_RIGHT_PX, RANK_TOP_PX = 180.0, 300.0, 44.0
LONGEST_NAME = 16  # characters between the score and the line


def _ranks(chart: RankChart) -> Canvas:
    canvas = Canvas(WIDTH_PX, RANK_TOP_PX + ROW_PX * len(chart.left.names))
    canvas.text(RANK_LEFT_PX, 14, chart.left.title, anchor="right", bold=True)
    canvas.text(RANK_RIGHT_PX, 14, chart.right.title, bold=True)
    for before, name in enumerate(chart.left.names):
        after, look = chart.right.names.index(name), chart.looks[name]
        ends = [RANK_LEFT_PX + 16, RANK_RIGHT_PX - 16], [_rank_y(before), _rank_y(after)]
        if before == after:
            canvas.line(*ends, colour="unmoved", width=1.4)
        else:
            canvas.line(
                *ends, colour=look.colour, width=2, linestyle=(0, look.dash) if look.dash else "solid"
            )
    for column, edge, outwards in ((chart.left, RANK_LEFT_PX, -1), (chart.right, RANK_RIGHT_PX, 1)):
        _rank_column(canvas, column, chart.looks, edge, outwards)
    return canvas


def _rank_y(place: int) -> float:
    return RANK_TOP_PX + ROW_PX * (place + 0.35)


def _rank_column(
    canvas: Canvas, column: RankColumn, looks: Mapping[str, Look], edge: float, outwards: int
) -> None:
    """Marker, name and score, from the middle outwards."""
    near, far = ("right", "left") if outwards < 0 else ("left", "right")
    for place, (name, text) in enumerate(zip(column.names, column.texts, strict=True)):
        y = _rank_y(place)
        canvas.mark(edge - outwards * 7, y, looks[name])
        canvas.text(edge + outwards * 4, y, name, anchor=near, longest=LONGEST_NAME)
        canvas.text(edge + outwards * RANK_LEFT_PX, y, text, anchor=far, size=SMALL_PX, colour="muted")


_PAINTERS: Mapping[type, Callable[[Any], Canvas]] = {
    LineChart: _lines,
    DotChart: _dots,
    BarChart: _bars,
    ClassChart: _classes,
    RankChart: _ranks,
}
