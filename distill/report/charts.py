"""What a chart shows, as data: lines, dots, bars, rankings, classes. Values are in the unit of the axis, colours in styles.

Each class says all that draw.py needs; nothing here imports matplotlib.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdcache.distill.report.styles import Style

Point = tuple[float, float]
Stretch = tuple[float, float]

PERCENT: Stretch = (0.0, 100.0)
"""What a share in percent can be: no axis and no interval of one runs beyond."""

FAR = 0.6
"""A limit further away than this share of what the data take would squeeze them: its name goes to the edge instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """The values of one name: a stroke for each seed, or one with an interval at every point."""

    name: str
    style: Style
    strokes: Sequence[Sequence[Point]]  # (x, y), x ascending; at least one, none empty
    intervals: Sequence[tuple[float, float, float]] = ()  # (x, low, high)
    raw: Sequence[Point] = ()  # drawn faintly behind: what a stroke smooths


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """A value that a chart is read against: the teacher's, or a method's whose teacher runs at every step."""

    name: str
    at: float
    low: float | None = None  # of its interval
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LineChart:
    """Lines over steps, time, lengths, views or bytes, each named at its end."""

    lines: Sequence[Line]
    x_title: str
    y_title: str
    limits: Sequence[Limit] = ()
    log_x: bool = False
    log_y: bool = False
    x_ticks: Mapping[float, str] | None = None  # round numbers if None
    bounds: Stretch | None = None  # of y


@dataclass(frozen=True, kw_only=True, slots=True)
class DotRow:
    """A mean with its interval and its seeds."""

    name: str
    style: Style
    mean: float
    seeds: Sequence[float]
    text: str  # at the end of the row
    interval: Stretch | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DotChart:
    """A row for each name. `stretch` is the x axis, which two charts may share."""

    rows: Sequence[DotRow]
    x_title: str
    stretch: Stretch
    limits: Sequence[Limit] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """Stacked values, or one value on either side of zero with its seeds as dots."""

    name: str
    values: Sequence[float]
    text: str  # at the end of the row
    seeds: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class BarChart:
    """A bar for each name, from zero. With `parts`, names and colours, values are stacked; else they are differences."""

    bars: Sequence[Bar]
    x_title: str
    parts: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RankColumn:
    """A ranking, the best first."""

    title: str
    names: Sequence[str]
    texts: Sequence[str]  # a score for each name


@dataclass(frozen=True, kw_only=True, slots=True)
class RankChart:
    """Two rankings of the same names side by side, a line from each name to itself."""

    left: RankColumn
    right: RankColumn
    styles: Mapping[str, Style]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassChart:
    """IoU by class in percent, a marker for each name; None for a class that is not there."""

    classes: Sequence[str]
    iou: Mapping[str, Sequence[float | None]]
    styles: Mapping[str, Style]
    x_title: str = "IoU, %"


Chart = LineChart | DotChart | BarChart | RankChart | ClassChart


def stretch_of(rows: Sequence[DotRow], limits: Sequence[Limit], bounds: Stretch) -> Stretch:
    """The axis that some rows and the limits near them need."""
    values = [value for row in rows for value in (row.mean, *row.seeds, *(row.interval or ()))]
    values += [limit.at for limit in limits if is_near(limit.at, values)]
    return padded(values, least=0.5, bounds=bounds)


def padded(
    values: Sequence[float], *, share: float = 0.06, least: float = 0.0, bounds: Stretch | None = None
) -> Stretch:
    """From the least to the greatest value with space at both ends, but not beyond `bounds`; at least `least` wide."""
    low, high = min(values), max(values)
    space = max((high - low) * share, (least - (high - low)) / 2)
    if space <= 0:
        space = abs(low) * share or 1e-9
    if bounds is None:
        return low - space, high + space
    low, high = max(bounds[0], low - space), min(bounds[1], high + space)
    return (low, high) if low < high else bounds


def is_near(at: float, values: Sequence[float]) -> bool:
    """Whether an axis can show a limit without squeezing the values."""
    low, high = min(values), max(values)
    reach = FAR * max(high - low, 0.5)
    return low - reach <= at <= high + reach


def clipped(interval: Stretch | None, bounds: Stretch) -> Stretch | None:
    """An interval, cut where no value can be."""
    return None if interval is None else (max(bounds[0], interval[0]), min(bounds[1], interval[1]))
