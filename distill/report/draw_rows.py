"""Charts of a row for each name drawn: dots, bars, classes, and rankings side by side."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from kdcache.distill.report.canvas import (
    FONT_PX,
    LINE_PX,
    SMALL_PX,
    Canvas,
    axis_title,
    label_lines,
    marker_style,
    paint,
    set_ticks,
    width_px,
)
from kdcache.distill.report.charts import BarChart, ClassChart, DotChart, DotRow, RankChart, RankColumn
from kdcache.distill.report.styles import Style

WIDTH_PX, ROW_PX, TALL_ROW_PX, BOTTOM_PX = 480.0, 26.0, 30.0, 44.0
BAR_SHARE = 0.64  # of a row
RANK_LEFT_PX, RANK_RIGHT_PX, RANK_TOP_PX = 196.0, 284.0, 44.0
LONGEST_NAME = 20  # characters between the score and the middle


def _row_px(names: Sequence[str]) -> float:
    """The height of a row: more where a name takes two lines."""
    return TALL_ROW_PX if any(len(label_lines(name)) > 1 for name in names) else ROW_PX


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
        canvas.label(left - 6 - mark_px, top + row_px * (place + 0.5), name, anchor="right")
    for place, text in enumerate(texts):
        canvas.text(
            WIDTH_PX, top + row_px * (place + 0.5), text, anchor="right", size=SMALL_PX, colour="muted"
        )
    canvas.text((left + right) / 2, canvas.height - 12, x_title, **axis_title(anchor="center"))
    return axes


def paint_dots(chart: DotChart) -> Canvas:
    top = 24.0
    names, texts = [row.name for row in chart.rows], [row.text for row in chart.rows]
    row_px = _row_px(names)
    canvas = Canvas(WIDTH_PX, top + row_px * len(names) + BOTTOM_PX)
    axes = _row_axes(canvas, names, texts, top=top, x_title=chart.x_title, mark_px=14)
    axes.set_xlim(*chart.stretch)
    set_ticks(axes.xaxis, False, None)
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
        canvas.mark(right if beyond else left, 10, Style(colour="muted", marker=">" if beyond else "<"))
    for place, row in enumerate(chart.rows):
        _dot_row(axes, row, place)
        canvas.mark(left - 9, top + row_px * (place + 0.5), row.style)
    return canvas


def _dot_row(axes: Axes, row: DotRow, place: int) -> None:
    if row.interval:
        axes.plot(
            row.interval, [place] * 2, color=paint(row.style.colour), alpha=0.55, linewidth=3, clip_on=False
        )
    if len(row.seeds) > 1:
        style = marker_style(row.style, 8.0, seed=True)
        axes.plot(row.seeds, [place] * len(row.seeds), **style, clip_on=False, zorder=3)
    axes.plot([row.mean], [place], **marker_style(row.style, 9.0), clip_on=False, zorder=4)


def paint_bars(chart: BarChart) -> Canvas:
    legend = _legend_places(list(chart.parts or ()))
    top = 8.0 + LINE_PX * (1 + legend[-1][1] if legend else 0)
    names, texts = [bar.name for bar in chart.bars], [bar.text for bar in chart.bars]
    canvas = Canvas(WIDTH_PX, top + _row_px(names) * len(names) + BOTTOM_PX)
    axes = _row_axes(canvas, names, texts, top=top, x_title=chart.x_title)
    ends = [value for bar in chart.bars for value in (0.0, sum(bar.values), *bar.seeds)]
    low, high = min(ends), max(ends)
    axes.set_xlim(
        low - 0.04 * (high - low) if low < 0 else 0.0, high + 0.04 * (high - low) if high > low else 1.0
    )
    set_ticks(axes.xaxis, False, None)
    for place, bar in enumerate(chart.bars):
        begin, parts = 0.0, chart.parts or {"": "gain" if sum(bar.values) >= 0 else "loss"}
        for (part, colour), value in zip(parts.items(), bar.values, strict=True):
            (drawn,) = axes.barh(place, value, BAR_SHARE, left=begin, color=paint(colour), clip_on=False)
            drawn.set_gid(canvas.tooltip(f"{part}: {value:.3g} s" if part else f"{bar.name}: {bar.text}"))
            begin += value
        for seed in bar.seeds:
            style = marker_style(Style(colour="ink"), 8.0, seed=True)
            axes.plot([seed], [place], **style, clip_on=False, zorder=3)
    axes.axvline(0, color=paint("muted"), linewidth=1, clip_on=False)
    _legend(
        canvas,
        legend,
        {part: Style(colour=colour, marker="s") for part, colour in (chart.parts or {}).items()},
    )
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


def paint_classes(chart: ClassChart) -> Canvas:
    legend = _legend_places(list(chart.iou))
    top = 14.0 + LINE_PX * (1 + legend[-1][1])
    row_px = ROW_PX * 0.8 + 2.5 * (len(chart.iou) - 1)
    canvas = Canvas(WIDTH_PX, top + row_px * len(chart.classes) + BOTTOM_PX)
    axes = _row_axes(canvas, chart.classes, [""], top=top, x_title=chart.x_title)
    axes.set_xlim(0, 100)
    set_ticks(axes.xaxis, False, {float(at): str(at) for at in range(0, 101, 20)})
    for index, (name, values) in enumerate(chart.iou.items()):
        beside = 0.7 * ((index + 0.5) / len(chart.iou) - 0.5)
        known = [(value, place + beside) for place, value in enumerate(values) if value is not None]
        if known:
            axes.plot(*zip(*known, strict=True), **marker_style(chart.styles[name], 6.4), clip_on=False)
    axes.hlines(
        [place + 0.5 for place in range(len(chart.classes) - 1)],
        0,
        100,
        color=paint("rule"),
        linewidth=0.6,
        clip_on=False,
    )
    _legend(canvas, legend, {name: chart.styles[name] for name in chart.iou})
    return canvas


def _legend(canvas: Canvas, places: Sequence[tuple[float, int]], styles: Mapping[str, Style]) -> None:
    for (name, style), (x, line) in zip(styles.items(), places, strict=True):
        canvas.mark(x + 6, 8 + LINE_PX * line, style, 10.0 if style.marker == "s" else 8.0)
        canvas.text(x + 16, 8 + LINE_PX * line, name, size=SMALL_PX)


def paint_ranks(chart: RankChart) -> Canvas:
    row_px = _row_px(chart.left.names)
    canvas = Canvas(WIDTH_PX, RANK_TOP_PX + row_px * len(chart.left.names))
    canvas.text(RANK_LEFT_PX, 14, chart.left.title, anchor="right", bold=True)
    canvas.text(RANK_RIGHT_PX, 14, chart.right.title, bold=True)
    for before, name in enumerate(chart.left.names):
        after, style = chart.right.names.index(name), chart.styles[name]
        ends = [RANK_LEFT_PX + 16, RANK_RIGHT_PX - 16], [_rank_y(before, row_px), _rank_y(after, row_px)]
        if before == after:
            canvas.line(*ends, colour="unmoved", width=1.4)
        else:
            canvas.line(
                *ends, colour=style.colour, width=2, linestyle=(0, style.dash) if style.dash else "solid"
            )
    for column, edge, outwards in ((chart.left, RANK_LEFT_PX, -1), (chart.right, RANK_RIGHT_PX, 1)):
        _rank_column(canvas, column, chart.styles, edge, outwards, row_px)
    return canvas


def _rank_y(place: int, row_px: float) -> float:
    return RANK_TOP_PX + row_px * (place + 0.35)


def _rank_column(
    canvas: Canvas, column: RankColumn, styles: Mapping[str, Style], edge: float, outwards: int, row_px: float
) -> None:
    """Marker, name and score, from the middle outwards."""
    near, far = ("right", "left") if outwards < 0 else ("left", "right")
    for place, (name, text) in enumerate(zip(column.names, column.texts, strict=True)):
        y = _rank_y(place, row_px)
        canvas.mark(edge - outwards * 7, y, styles[name])
        canvas.label(edge + outwards * 4, y, name, anchor=near, longest=LONGEST_NAME)
        canvas.text(edge + outwards * RANK_LEFT_PX, y, text, anchor=far, size=SMALL_PX, colour="muted")
