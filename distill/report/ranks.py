"""Two rankings side by side, a line from each name to itself: what changed place is seen at once; an inline SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdcache.distill.report.axes import drawing, label
from kdcache.distill.report.markup import Markup, join, tag
from kdcache.distill.report.styles import Look, marker

WIDTH_PX, ROW_PX, TOP_PX = 480.0, 26.0, 44.0
LEFT_PX, RIGHT_PX = 180.0, 300.0
LONGEST_NAME = 16  # characters between the score and the line


@dataclass(frozen=True, kw_only=True, slots=True)
class RankColumn:
    """The best first."""

    title: str
    names: Sequence[str]
    texts: Sequence[str]  # a score a name


def draw_rankings(left: RankColumn, right: RankColumn, looks: Mapping[str, Look], *, title: str) -> Markup:
    """Both have the same names."""
    rows = len(left.names)
    return drawing(
        WIDTH_PX,
        TOP_PX + ROW_PX * rows,
        title,
        label(left.title, LEFT_PX, 14, anchor="end", class_="strong"),
        label(right.title, RIGHT_PX, 14, class_="strong"),
        *(_link(looks[name], place, right.names.index(name)) for place, name in enumerate(left.names)),
        *(_entry(left, place, looks, "end") for place in range(rows)),
        *(_entry(right, place, looks, "start") for place in range(rows)),
    )


def _y(place: int) -> float:
    return TOP_PX + ROW_PX * (place + 0.35)


def _link(look: Look, before: int, after: int) -> Markup:
    start, end = LEFT_PX + 16, RIGHT_PX - 16
    if before == after:
        return tag("line", x1=start, x2=end, y1=_y(before), y2=_y(after), class_="unmoved")
    class_ = f"{look.class_} line"
    return tag(
        "line", x1=start, x2=end, y1=_y(before), y2=_y(after), class_=class_, stroke_dasharray=look.dash
    )


def _entry(ranking: RankColumn, place: int, looks: Mapping[str, Look], anchor: str) -> Markup:
    """Place, name and score; mirrored on the left."""
    name, score, y = ranking.names[place], ranking.texts[place], _y(place)
    outwards = -1 if anchor == "end" else 1
    edge = LEFT_PX if anchor == "end" else RIGHT_PX
    return join(
        marker(looks[name], edge - outwards * 7, y, 4.0),
        label(name, edge + outwards * 4, y, anchor=anchor, longest=LONGEST_NAME),
        label(
            score, edge + outwards * LEFT_PX, y, anchor="start" if anchor == "end" else "end", class_="tick"
        ),
    )
