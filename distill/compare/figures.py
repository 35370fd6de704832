"""The figures of a comparison's report: rankings, curves, lengths, views. Every function gives [] for nothing to draw."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from kdcache.distill.compare.breakdown import Ladder, Views
from kdcache.distill.compare.contest import quoted
from kdcache.distill.compare.ranking import Ranking, Row
from kdcache.distill.compare.standings import Standings
from kdcache.distill.report.charts import (
    PERCENT,
    DotChart,
    DotRow,
    Limit,
    Line,
    LineChart,
    RankChart,
    RankColumn,
    stretch_of,
)
from kdcache.distill.report.curves import miou_figures
from kdcache.distill.report.model import Figure, percent
from kdcache.distill.report.record import Curve
from kdcache.distill.report.styles import Style
from kdcache.distill.units import duration_text

Styles = Mapping[str, Style]
"""By label."""

PRICE_TICKS = (0.5, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4, 5, 7, 10, 20, 50)
CLOCK_WORDS = {"time": "equal time", "steps": "equal steps"}


def in_charts(standings: Standings, ranking: Ranking) -> Ranking:
    """The rows that charts show, see Contest.charted."""
    charted = standings.contest.charted
    return replace(ranking, rows=[row for row in ranking.rows if row.contender in charted])


def rank_figures(by_steps: Ranking, by_time: Ranking, styles: Styles) -> list[Figure]:
    common = by_steps.ranks().keys() & by_time.ranks().keys()
    if not common or by_steps.doubt or by_time.doubt:
        return []
    left, right = (_column(ranking, common) for ranking in (by_steps, by_time))
    moved = sum(one != other for one, other in zip(left.names, right.names, strict=True))
    places = "1 changes place" if moved == 1 else f"{moved or 'None'} of {len(common)} change place"
    return [
        Figure(
            name="ranking",
            title="What the clock changes",
            caption=f"Mean mIoU in percent, the best at the top. {places}.",
            chart=RankChart(left=left, right=right, styles=styles),
            alt=f"Ranking at equal steps: {_list(left.names)}. At equal time: {_list(right.names)}.",
        )
    ]


def mean_figures(rankings: Sequence[Ranking], styles: Styles, limits: Sequence[Limit]) -> list[Figure]:
    """Means, intervals and seeds of some rankings, on one axis for all."""
    rows = [
        [_dots(ranking, row, styles) for row in ranking.rows if row.miou is not None] for ranking in rankings
    ]
    shown = [row for of_ranking in rows for row in of_ranking]
    if not shown:
        return []
    stretch = stretch_of(shown, limits, PERCENT)
    cut = any(end in PERCENT for row in shown for end in row.interval or ())
    caption = "Filled: the mean; hollow: each seed; bar: the 95 % interval of the mean."
    return [
        Figure(
            name=f"miou-at-{CLOCK_WORDS[ranking.rung.clock].replace(' ', '-')}",
            title=f"mIoU at {CLOCK_WORDS[ranking.rung.clock]}",
            caption=caption + (" Intervals are cut at 0 and 100 %." if cut else ""),
            chart=DotChart(rows=of_ranking, x_title="mIoU, %", stretch=stretch, limits=limits),
            alt="; ".join(f"{row.name}: mIoU {row.text} percent" for row in of_ranking),
        )
        for ranking, of_ranking in zip(rankings, rows, strict=True)
        if of_ranking
    ]


def curve_figures(standings: Standings, ranking: Ranking, styles: Styles) -> list[Figure]:
    """mIoU over the clock of a ranking, a line for each seed, the best contender first."""
    curves: dict[str, list[Curve]] = {row.label: [] for row in ranking.rows}
    for account in standings.accounts:
        label = standings.contest.labels[account.start.contender.name]
        if (
            account.record
            and account.start.rung == ranking.rung
            and not account.start.again
            and label in curves
        ):
            curves[label].append(account.record.curve())
    return miou_figures(curves, styles, teacher_limits(standings), ranking.rung.clock)


def worth_figures(standings: Standings, ranking: Ranking, styles: Styles) -> list[Figure]:
    """What a method gives against what its step costs, over the baseline's."""
    price = {cost.contender: cost.over_baseline for cost in standings.costs if cost.over_baseline}
    rows = [row for row in ranking.rows if row.miou is not None and row.contender in price]
    if len(rows) < 2:
        return []
    found = [price[row.contender] for row in rows]
    ticks = [at for at in PRICE_TICKS if min(found) * 0.95 <= at <= max(found) * 1.05]
    lines = [_line(row.label, [(price[row.contender], row)], styles[row.label]) for row in rows]
    chart = replace(
        _over(lines, "time of a step over the baseline's", teacher_limits(standings)),
        log_x=True,
        x_ticks={at: f"{at:g}" for at in ticks},
    )
    return [
        Figure(
            name="gain-and-price",
            title=f"Gain and price, at {CLOCK_WORDS[ranking.rung.clock]}",
            caption="Further up is a better student, further left a cheaper step; bars are 95 % intervals. Names are in the "
            "order of the scores.",
            chart=chart,
            alt="; ".join(
                f"{row.label}: {price[row.contender]:.2f} times the baseline's step" for row in rows
            ),
        )
    ]


def length_figures(standings: Standings, styles: Styles) -> list[Figure]:
    """mIoU over lengths, where there are several."""
    ladder = Ladder.of(standings)
    if ladder is None:
        return []
    timed, labels = ladder.clock == "time", standings.contest.labels
    over = "budget" if timed else "steps"
    lines = [_line(labels[name], found, styles[labels[name]]) for name, found in ladder.points.items()]
    ticks = {at: duration_text(at) if timed else f"{at:.0f}" for at in ladder.lengths}
    chart = replace(
        _over(lines, f"{over} of training, logarithmic", teacher_limits(standings)), log_x=True, x_ticks=ticks
    )
    return [
        Figure(
            name="lengths",
            title="What a longer budget gives",
            caption="Means over seeds with their 95 % intervals; every point is a run of its own, with a schedule of that "
            "length.",
            chart=chart,
            alt=f"mIoU over the {over} of training, for {_list([line.name for line in lines])}",
        )
    ]


def view_figures(standings: Standings, styles: Styles) -> list[Figure]:
    """mIoU over the number of views in the store, with the methods whose teacher runs at every step as limits."""
    views = Views.of(standings)
    if views is None:
        return []
    # A method looks as its row of the most views does elsewhere.
    lines = [_line(method, found, styles[found[-1][1].label]) for method, found in views.points.items()]
    limits = [_row_limit(row.label, row) for row in views.online.values()]
    ticks = sorted({at for found in views.points.values() for at, _ in found})
    chart = replace(
        _over(lines, "views of every image in the store", limits),
        log_x=True,
        x_ticks={at: f"{at:g}" for at in ticks},
    )
    about = f"After {views.ranking.title}: means with 95 % intervals."
    return [
        Figure(
            name="views",
            title="How many views are enough",
            caption=about + (" The limit is the teacher at every step, on fresh views." if limits else ""),
            chart=chart,
            alt=f"mIoU over stored views for {', '.join(views.points)}",
        )
    ]


def teacher_limits(standings: Standings) -> list[Limit]:
    miou = standings.contest.teacher.get("miou")
    return [] if miou is None else [Limit(name="teacher", at=100 * miou)]


def mean_text(row: Row, coarse: bool) -> str:
    """As in "60.10 ± 0.25"; an interval that is cut is said by its ends."""
    text = percent(row.miou, coarse)
    if row.interval is None or row.miou is None or coarse:
        return text
    low, high = row.interval
    if low == 0 or high == 1:
        return f"{text} ({100 * low:.1f} to {100 * high:.1f})"
    return f"{text} ± {50 * (high - low):.2f}"


def _list(labels: Sequence[str]) -> str:
    return ", ".join(map(quoted, labels))


def _over(lines: Sequence[Line], x_title: str, limits: Sequence[Limit]) -> LineChart:
    return LineChart(lines=lines, x_title=x_title, y_title="mIoU, %", limits=limits, bounds=PERCENT)


def _column(ranking: Ranking, names: Collection[str]) -> RankColumn:
    scored = [row for row in ranking.rows if row.contender in names]
    return RankColumn(
        title=CLOCK_WORDS[ranking.rung.clock],
        names=[row.label for row in scored],
        texts=[percent(row.miou, ranking.is_coarse(row)) for row in scored],
    )


def _dots(ranking: Ranking, row: Row, styles: Styles) -> DotRow:
    return DotRow(
        name=row.label,
        style=styles[row.label],
        mean=100 * (row.miou or 0.0),
        seeds=[100 * value for value in row.by_seed.values()],
        text=mean_text(row, ranking.is_coarse(row)),
        interval=(100 * row.interval[0], 100 * row.interval[1]) if row.interval else None,
    )


def _line(name: str, found: Sequence[tuple[float, Row]], style: Style) -> Line:
    known = [(at, row) for at, row in found if row.miou is not None]
    return Line(
        name=name,
        style=style,
        strokes=[[(at, 100 * (row.miou or 0)) for at, row in known]],
        intervals=[(at, 100 * row.interval[0], 100 * row.interval[1]) for at, row in known if row.interval],
    )


def _row_limit(name: str, row: Row) -> Limit:
    low, high = row.interval or (None, None)
    return Limit(
        name=name,
        at=100 * (row.miou or 0),
        low=None if low is None else 100 * low,
        high=None if high is None else 100 * high,
    )
