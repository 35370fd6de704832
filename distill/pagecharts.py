"""The page's figures: what standings hold, drawn. Every function gives "" where there is nothing to draw."""

from collections.abc import Iterable, Mapping, Sequence

from kdcache.distill.account import COMPLETE
from kdcache.distill.answer import points
from kdcache.distill.barchart import Bar, Stack, draw_differences, draw_stacks, legend
from kdcache.distill.clock import COPY, OTHER, PARTS, WAIT
from kdcache.distill.dotchart import DotRow, Mark, draw_rows, stretch_of
from kdcache.distill.durations import duration_text
from kdcache.distill.linechart import Limit, Line, draw_lines
from kdcache.distill.looks import Look
from kdcache.distill.markup import Markup, join, tag
from kdcache.distill.rankchart import RankColumn, draw_rankings
from kdcache.distill.standings import Ranking, Row, Standings
from kdcache.distill.stepcost import Cost
from kdcache.distill.figures import TIME_UNITS

Looks = Mapping[str, Look]
NOTHING = Markup("")
MOST_CLASSES = 24
CLOCK_WORDS = {"time": "equal time", "steps": "equal steps"}


def figure(title: str, about: str, *drawn: Markup) -> Markup:
    return tag("figure", tag("figcaption", tag("b", title), ". ", about), *drawn)


def pair(*figures: Markup) -> Markup:
    """Side by side where the page is wide enough."""
    shown = [drawn for drawn in figures if drawn]
    return tag("div", *shown, class_="pair" if len(shown) > 1 else "pair one") if shown else NOTHING


def rank_figure(by_steps: Ranking, by_time: Ranking, looks: Looks) -> Markup:
    left, right = (_column(ranking) for ranking in (by_steps, by_time))
    if not left.names or not right.names:
        return NOTHING
    moved = sum(left.names.index(n) != right.names.index(n) for n in left.names if n in right.names)
    about = f"Mean mIoU in percent, the best at the top. {moved or 'None'} of {len(right.names)} change place."
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
    longest = max((stroke[-1][0] for strokes in curves.values() for stroke in strokes), default=0.0)
    unit, unit_s = time_unit(longest) if timed else ("steps", 1)
    lines = [
        Line(
            name=name,
            look=looks[name],
            strokes=[[(at / unit_s, miou) for at, miou in stroke] for stroke in curves[name]],
        )
        for name in order
    ]
    if not lines or all(len(stroke) < 2 for line in lines for stroke in line.strokes):
        return NOTHING
    return figure(
        "mIoU over time" if timed else "mIoU over steps",
        "A line a seed, named at the mean of its ends. Time is of training alone."
        if timed
        else "A line a seed, named at the mean of its ends.",
        draw_lines(
            lines,
            title=f"mIoU over {'time' if timed else 'steps'} of {', '.join(order)}",
            x_title=f"{unit} of training" if timed else "steps",
            y_title="mIoU, %",
            limits=teacher_limit(standings),
        ),
    )


def ladder_figure(standings: Standings, looks: Looks) -> Markup:
    """mIoU over budgets, where there are several."""
    timed = [ranking for ranking in standings.rankings if ranking.rung.clock == "time"]
    if len(timed) < 2:
        return NOTHING
    by_name: dict[str, list[tuple[float, Row]]] = {}
    for ranking in timed:
        for row in ranking.rows:
            if row.miou is not None and ranking.rung.budget_s:
                by_name.setdefault(row.contender, []).append((ranking.rung.budget_s, row))
    lines = [_ladder(name, found, looks[name]) for name, found in by_name.items()]
    if not lines:
        return NOTHING
    budgets_s = sorted({at for found in by_name.values() for at, _ in found})
    return figure(
        "What a longer budget gives",
        "Means over seeds with their 95 % intervals; every point is a run of its own, with a schedule of that length.",
        draw_lines(
            lines,
            title=f"mIoU over the budget of training, for {', '.join(by_name)}",
            x_title="budget (each step of the axis the same factor)",
            y_title="mIoU, %",
            limits=teacher_limit(standings),
            logarithmic=True,
            x_ticks={at: duration_text(at) for at in budgets_s},
        ),
    )


def views_figure(standings: Standings, ranking: Ranking, looks: Looks) -> Markup:
    """mIoU over the number of views in the store, with the methods' online selves as limits."""
    contenders = {contender.name: contender for contender in standings.contest.contenders}
    rows = {row.contender: row for row in ranking.rows if row.miou is not None}
    stored = len(standings.contest.teacher.get("build_s") or ())
    by_method: dict[str, list[tuple[float, Row]]] = {}
    for name, row in rows.items():
        contender = contenders[name]
        views = contender.passes or stored
        if contender.source == "cache" and views:
            by_method.setdefault(contender.method, []).append((float(views), row))
    by_method = {method: found for method, found in by_method.items() if len({at for at, _ in found}) > 1}
    if not by_method:
        return NOTHING
    limits = [
        _row_limit(f"{contenders[name].method}, online", row)
        for name, row in rows.items()
        if contenders[name].source == "online" and contenders[name].method in by_method
    ]
    lines = [
        _ladder(method, sorted(found, key=lambda at_row: at_row[0]), looks.get(method, next(iter(looks.values()))))
        for method, found in by_method.items()
    ]
    ticks = sorted({at for found in by_method.values() for at, _ in found})
    about = "At the longest budget, means with 95 % intervals. The limit is the teacher running along on fresh views."
    return figure(
        "How many views are enough",
        about if limits else "At the longest budget, means with 95 % intervals.",
        draw_lines(
            lines,
            title=f"mIoU over stored views for {', '.join(by_method)}",
            x_title="views of every image in the store",
            y_title="mIoU, %",
            limits=limits,
            logarithmic=True,
            x_ticks={at: f"{at:g}" for at in ticks},
        ),
    )


def cost_figures(standings: Standings) -> list[Markup]:
    """A step by whose work it is, and by the parts that the clock saw."""
    costs = standings.costs
    if not costs:
        return []
    profiled = [cost for cost in costs if cost.parts]
    about = "Seconds of a step, and over the baseline."
    if not profiled:
        bars = [Stack(name=cost.contender, values=[cost.step_s], text=_cost_text(cost)) for cost in costs]
        return [figure("Cost of a step", about, _stacks(bars, ["a step"]))]
    whose = ["data", "student", "loss", "teacher", "other"]
    by_whose = [Stack(name=c.contender, values=_whose(c), text=_cost_text(c)) for c in profiled]
    parts = list(PARTS.values())
    by_part = [
        Stack(name=c.contender, values=[c.parts.get(part, 0.0) for part in parts], text=f"{sum(c.parts.values()):.3g} s")
        for c in profiled
    ]
    said = (
        "Student: what the baseline computes; loss: what the method computes beyond it; teacher: what it computes "
        "beyond that when the teacher runs along."
    )
    return [
        figure("Cost of a step, by whose work it is", f"{about} {said}", _stacks(by_whose, whose)),
        figure("Cost of a step, by part", "Seconds that the clock gave to each part.", _stacks(by_part, parts)),
    ]


def class_figure(standings: Standings, ranking: Ranking) -> Markup:
    """IoU by class of the best method that is not the baseline, over the baseline's."""
    baseline = standings.contest.baseline.name
    best = next((row for row in ranking.rows if row.contender != baseline and row.class_iou), None)
    base = next((row for row in ranking.rows if row.contender == baseline and row.class_iou), None)
    if best is None or base is None:
        return NOTHING
    seeds = [_class_iou_by_seed(standings, ranking, name) for name in (best.contender, baseline)]
    common = sorted(seeds[0].keys() & seeds[1].keys())
    bars = []
    for name, iou in best.class_iou.items():
        other = base.class_iou.get(name)
        if iou is None or other is None:
            continue
        by_seed = [
            100 * (one - two)
            for seed in common
            if (one := seeds[0][seed].get(name)) is not None and (two := seeds[1][seed].get(name)) is not None
        ]
        value = 100 * (iou - other)
        shown = by_seed if len(by_seed) > 1 else []
        bars.append(Bar(name=name, value=value, seeds=shown, text=points(value / 100)))
    bars.sort(key=lambda bar: -bar.value)
    shown_bars = bars if len(bars) <= MOST_CLASSES else bars[: MOST_CLASSES // 2] + bars[-MOST_CLASSES // 2 :]
    if not shown_bars:
        return NOTHING
    left_out = f" The {len(shown_bars)} that differ most of {len(bars)}." if len(bars) > len(shown_bars) else ""
    return figure(
        f"{best.contender} over {baseline}, by class",
        f"Points of IoU; dots are seeds.{left_out}",
        draw_differences(
            shown_bars,
            title="; ".join(f"{bar.name} {bar.text}" for bar in shown_bars),
            x_title=f"points of IoU over {baseline}",
        ),
    )


def teacher_limit(standings: Standings) -> list[Limit]:
    miou = standings.contest.teacher.get("miou")
    return [] if miou is None else [Limit(name="teacher", y=100 * miou)]


def time_unit(longest_s: float) -> tuple[str, int]:
    """The unit in which a time reads well, and its seconds."""
    return next((name, seconds) for name, seconds in TIME_UNITS.items() if longest_s >= 2 * seconds or seconds == 1)


def _column(ranking: Ranking) -> RankColumn:
    scored = [row for row in ranking.rows if row.miou is not None]
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


def _cost_text(cost: Cost) -> str:
    over = "" if cost.over_baseline is None else f"  {cost.over_baseline:.2f}×"
    return f"{cost.step_s:.3g} s{over}"


def _whose(cost: Cost) -> list[float]:
    """Seconds for data, student, loss, teacher and the rest. A loss within the noise of its step can be below zero."""
    parts = cost.parts
    data = parts.get(PARTS[WAIT], 0.0) + parts.get(PARTS[COPY], 0.0)
    computed = (max(0.0, seconds or 0.0) for seconds in (cost.student_s, cost.loss_s, cost.teacher_s))
    return [data, *computed, parts.get(PARTS[OTHER], 0.0)]


def _stacks(bars: Sequence[Stack], parts: Sequence[str]) -> Markup:
    title = "; ".join(
        f"{bar.name}: " + ", ".join(f"{part} {value:.3g} s" for part, value in zip(parts, bar.values, strict=True))
        for bar in bars
    )
    drawn = draw_stacks(bars, parts, title=title, x_title="seconds a step")
    return join(legend(parts) if len(parts) > 1 else None, drawn)


def _class_iou_by_seed(
    standings: Standings, ranking: Ranking, contender: str
) -> dict[int, Mapping[str, float | None]]:
    return {
        o.start.seed: o.record.scores["iou"]
        for o in _done(standings, ranking)
        if o.start.contender.name == contender and o.record and o.record.scores
    }


def _done(standings: Standings, ranking: Ranking) -> Iterable:  # type: ignore[type-arg]
    return (
        o
        for o in standings.outcomes
        if o.status == COMPLETE and o.start.rung == ranking.rung and not o.start.again
    )
