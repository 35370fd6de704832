"""The page's figures: what standings hold, drawn. Every function gives "" where there is nothing to draw."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from kdcache.distill.compare.breakdown import Ladder, Views
from kdcache.distill.compare.markdown import ranking_title
from kdcache.distill.compare.ranking import Ranking, Row
from kdcache.distill.compare.standings import Standings
from kdcache.distill.report.dots import DotRow, Mark, draw_rows, stretch_of
from kdcache.distill.report.figures import TIME_UNITS
from kdcache.distill.report.lines import Limit, Line, draw_lines
from kdcache.distill.report.markup import Markup, tag
from kdcache.distill.report.ranks import RankColumn, draw_rankings
from kdcache.distill.report.styles import PLAIN, Look
from kdcache.distill.units import duration_text

Looks = Mapping[str, Look]
NOTHING = Markup("")
EARLY_SHARE = 2.0  # of the stretch of the ends: what lies deeper below them is left out of curves
PRICE_TICKS = (0.5, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4, 5, 7, 10, 20, 50)
CLOCK_WORDS = {"time": "equal time", "steps": "equal steps"}


def in_charts(standings: Standings, ranking: Ranking) -> Ranking:
    """The rows that charts show, see Contest.charted."""
    charted = standings.contest.charted
    return replace(ranking, rows=[row for row in ranking.rows if row.contender in charted])


def figure(title: str, about: str, *drawn: Markup) -> Markup:
    return tag("figure", tag("figcaption", tag("b", title), ". ", about), *drawn)


def pair(*figures: Markup) -> Markup:
    """Side by side where the page is wide enough."""
    shown = [drawn for drawn in figures if drawn]
    return tag("div", *shown, class_="pair" if len(shown) > 1 else "pair one") if shown else NOTHING


def rank_figure(by_steps: Ranking, by_time: Ranking, looks: Looks) -> Markup:
    common = by_steps.ranks().keys() & by_time.ranks().keys()
    if not common:
        return NOTHING
    left, right = (_column(ranking, common) for ranking in (by_steps, by_time))
    moved = sum(one != other for one, other in zip(left.names, right.names, strict=True))
    about = f"Mean mIoU in percent, the best at the top. {moved or 'None'} of {len(common)} change place."
    title = f"Ranking at equal steps: {', '.join(left.names)}. At equal time: {', '.join(right.names)}."
    return figure("What the clock changes", about, draw_rankings(left, right, looks, title=title))


def mean_figures(rankings: Sequence[Ranking], looks: Looks, teacher_miou: float | None) -> list[Markup]:
    """Means, intervals and seeds of some rankings, on one axis for all."""
    marks = [] if teacher_miou is None else [Mark(name="teacher", at=100 * teacher_miou)]
    rows = [[_dots(row, looks) for row in ranking.rows if row.miou is not None] for ranking in rankings]
    shown = [row for of_ranking in rows for row in of_ranking]
    if not shown:
        return []
    stretch = stretch_of(shown, marks)
    return [
        figure(
            f"mIoU at {CLOCK_WORDS[ranking.rung.clock]}",
            "Filled: the mean; hollow: each seed; bar: the 95 % interval of the mean.",
            draw_rows(
                of_ranking,
                title="; ".join(f"{row.name}: mIoU {row.text} percent" for row in of_ranking),
                x_title="mIoU, %",
                marks=marks,
                stretch=stretch,
            ),
        )
        for ranking, of_ranking in zip(rankings, rows, strict=True)
        if of_ranking
    ]


def curve_figure(standings: Standings, ranking: Ranking, looks: Looks) -> Markup:
    """mIoU over the clock of a ranking: time of training, or steps."""
    timed = ranking.rung.clock == "time"
    curves: dict[str, list[list[tuple[float, float]]]] = {}
    for outcome in standings.outcomes:
        if outcome.record and outcome.start.rung == ranking.rung and not outcome.start.again:
            curve = outcome.record.curve()
            across = curve.seconds if timed else curve.steps
            stroke = [(float(at), 100 * miou) for at, miou in zip(across, curve.miou, strict=True)]
            if stroke:
                curves.setdefault(outcome.start.contender.name, []).append(stroke)
    order = [row.contender for row in ranking.rows if row.contender in curves]
    ends = [stroke[-1] for name in order for stroke in curves[name]]
    if not ends:
        return NOTHING
    unit, unit_s = time_unit(max(at for at, _ in ends)) if timed else ("steps", 1)
    limits = teacher_limit(standings)
    lowest = min(miou for _, miou in ends)
    highest = max([miou for _, miou in ends] + [limit.y for limit in limits])
    floor = lowest - EARLY_SHARE * (highest - lowest)
    lines = [
        Line(
            name=name,
            look=looks[name],
            strokes=[
                [(at / unit_s, miou) for at, miou in stroke if miou >= floor or at == stroke[-1][0]]
                for stroke in curves[name]
            ],
        )
        for name in order
    ]
    if all(len(stroke) < 2 for line in lines for stroke in line.strokes):
        return NOTHING
    early = (
        " Earlier values lie below the axis."
        if min(v for n in order for s in curves[n] for _, v in s) < floor
        else ""
    )
    return figure(
        "mIoU over time" if timed else "mIoU over steps",
        f"A line a seed, named at the mean of its ends.{' Time is of training alone.' if timed else ''}{early}",
        draw_lines(
            lines,
            title=f"mIoU over {'time' if timed else 'steps'} of {', '.join(order)}",
            x_title=f"{unit} of training" if timed else "steps",
            y_title="mIoU, %",
            limits=limits,
        ),
    )


def worth_figure(standings: Standings, ranking: Ranking, looks: Looks) -> Markup:
    """What a method gives against what its step costs, over the baseline's."""
    price = {cost.contender: cost.over_baseline for cost in standings.costs if cost.over_baseline}
    rows = [row for row in ranking.rows if row.miou is not None and row.contender in price]
    if len(rows) < 2:
        return NOTHING
    found = [price[row.contender] for row in rows]
    ticks = [at for at in PRICE_TICKS if min(found) * 0.95 <= at <= max(found) * 1.05]
    return figure(
        f"Gain and price, at {CLOCK_WORDS[ranking.rung.clock]}",
        "Further up is a better student, further left a cheaper step; bars are 95 % intervals.",
        draw_lines(
            [_ladder(row.contender, [(price[row.contender], row)], looks[row.contender]) for row in rows],
            title="; ".join(
                f"{row.contender}: {price[row.contender]:.2f} times the baseline's step" for row in rows
            ),
            x_title="time of a step over the baseline's",
            y_title="mIoU, %",
            limits=teacher_limit(standings),
            logarithmic=True,
            x_ticks={at: f"{at:g}" for at in ticks},
        ),
    )


def ladder_figure(standings: Standings, looks: Looks) -> Markup:
    """mIoU over lengths, where there are several."""
    ladder = Ladder.of(standings)
    if ladder is None:
        return NOTHING
    timed, names = ladder.clock == "time", list(ladder.points)
    return figure(
        "What a longer budget gives",
        "Means over seeds with their 95 % intervals; every point is a run of its own, with a schedule of that length.",
        draw_lines(
            [_ladder(name, ladder.points[name], looks.get(name, PLAIN)) for name in names],
            title=f"mIoU over the {'budget' if timed else 'steps'} of training, for {', '.join(names)}",
            x_title=f"{'budget' if timed else 'steps'} of training, logarithmic",
            y_title="mIoU, %",
            limits=teacher_limit(standings),
            logarithmic=True,
            x_ticks={at: duration_text(at) if timed else f"{at:.0f}" for at in ladder.lengths},
        ),
    )


def views_figure(standings: Standings, looks: Looks) -> Markup:
    """mIoU over the number of views in the store, with the methods' online selves as limits."""
    views = Views.of(standings)
    if views is None:
        return NOTHING
    ticks = sorted({at for points in views.points.values() for at, _ in points})
    about = f"After {ranking_title(views.ranking)}: means with 95 % intervals."
    return figure(
        "How many views are enough",
        about + (" The limit is the teacher running along on fresh views." if views.online else ""),
        draw_lines(
            [_ladder(method, points, looks.get(method, PLAIN)) for method, points in views.points.items()],
            title=f"mIoU over stored views for {', '.join(views.points)}",
            x_title="views of every image in the store",
            y_title="mIoU, %",
            limits=[_row_limit(f"{method}, online", row) for method, row in views.online.items()],
            logarithmic=True,
            x_ticks={at: f"{at:g}" for at in ticks},
        ),
    )


def teacher_limit(standings: Standings) -> list[Limit]:
    miou = standings.contest.teacher.get("miou")
    return [] if miou is None else [Limit(name="teacher", y=100 * miou)]


def time_unit(longest_s: float) -> tuple[str, int]:
    """The unit in which a time reads well, and its seconds."""
    return next(
        (name, seconds) for name, seconds in TIME_UNITS.items() if longest_s >= 2 * seconds or seconds == 1
    )


def _column(ranking: Ranking, names: Collection[str]) -> RankColumn:
    scored = [row for row in ranking.rows if row.contender in names]
    return RankColumn(
        title=CLOCK_WORDS[ranking.rung.clock],
        names=[row.contender for row in scored],
        texts=[f"{100 * (row.miou or 0):.2f}" for row in scored],
    )


def _dots(row: Row, looks: Looks) -> DotRow:
    assert row.miou is not None
    half = (row.interval[1] - row.interval[0]) / 2 if row.interval else None
    return DotRow(
        name=row.contender,
        look=looks[row.contender],
        mean=100 * row.miou,
        seeds=[100 * value for value in row.by_seed.values()],
        text=f"{100 * row.miou:.2f}" + ("" if half is None else f" ± {100 * half:.2f}"),
        interval=(100 * row.interval[0], 100 * row.interval[1]) if row.interval else None,
    )


def _ladder(name: str, found: Sequence[tuple[float, Row]], look: Look) -> Line:
    known = [(at, row) for at, row in found if row.miou is not None]
    return Line(
        name=name,
        look=look,
        strokes=[[(at, 100 * (row.miou or 0)) for at, row in known]],
        intervals=[(at, 100 * row.interval[0], 100 * row.interval[1]) for at, row in known if row.interval],
    )


def _row_limit(name: str, row: Row) -> Limit:
    low, high = row.interval or (None, None)
    return Limit(
        name=name,
        y=100 * (row.miou or 0),
        low=None if low is None else 100 * low,
        high=None if high is None else 100 * high,
    )
