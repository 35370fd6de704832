"""More figures of a comparison's report, as bars: what a step costs, and what a method gives by class."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from kdcache.distill.clock import COPY, OTHER, PARTS, WAIT
from kdcache.distill.compare.account import COMPLETE
from kdcache.distill.compare.ranking import Ranking, Row
from kdcache.distill.compare.standings import Standings
from kdcache.distill.compare.step_cost import Cost
from kdcache.distill.report.charts import Bar, BarChart
from kdcache.distill.report.model import Figure, points

MOST_CLASSES = 24
T = TypeVar("T")
PART_COLOURS = dict(zip(PARTS.values(), ("p0", "p1", "p2", "p3", "p4", "p6"), strict=True))
WHOSE_COLOURS = {"data": "p0", "student": "p2", "loss": "p4", "teacher": "p5", "other": "p6"}


def cost_figures(standings: Standings) -> list[Figure]:
    """A step by whose work it is, and by the parts that the clock saw; one bar each for runs without a profile."""
    labels, charted = standings.contest.labels, standings.contest.charted
    costs = [cost for cost in standings.costs if cost.contender in charted]
    profiled = [cost for cost in costs if cost.parts]
    about = "Seconds of a step, median, and over the baseline's."
    if costs and not profiled:
        bars = [
            Bar(name=labels[cost.contender], values=[cost.step_s], text=_cost_text(cost)) for cost in costs
        ]
        return [_stacks("step-cost", "Cost of a step", about, bars, {"a step": "p2"})]
    if not profiled:
        return []
    whose = [Bar(name=labels[c.contender], values=_whose(c), text=_cost_text(c)) for c in profiled]
    by_part = [
        Bar(
            name=labels[c.contender],
            values=[c.parts.get(part, 0.0) for part in PART_COLOURS],
            text=f"{sum(c.parts.values()):.3g} s",
        )
        for c in profiled
    ]
    said = (
        f"{about} Student: what the baseline computes; loss: what the method computes beyond it; teacher: what it computes "
        "beyond that when the teacher runs at every step."
    )
    clocked = "Seconds that the clock gave to each part of a step."
    return [
        _stacks("cost-by-whose", "Whose work", said, whose, WHOSE_COLOURS),
        _stacks("cost-by-part", "Which part", clocked, by_part, PART_COLOURS),
    ]


def class_figures(standings: Standings, ranking: Ranking) -> list[Figure]:
    """IoU by class over the baseline's, of the two best methods."""
    baseline = standings.contest.baseline.name
    best = [row for row in ranking.rows if row.contender != baseline and row.class_iou][:2]
    base = next((row for row in ranking.rows if row.contender == baseline and row.class_iou), None)
    if base is None or ranking.doubt:
        return []
    found = [_class_figure(standings, ranking, row, base, place) for place, row in enumerate(best, start=1)]
    return [figure for figure in found if figure]


def extremes(ordered: Sequence[T]) -> list[T]:
    """The first and the last of a long list, all of a short one."""
    half = MOST_CLASSES // 2
    return list(ordered) if len(ordered) <= MOST_CLASSES else [*ordered[:half], *ordered[-half:]]


def _class_figure(standings: Standings, ranking: Ranking, row: Row, base: Row, place: int) -> Figure | None:
    own, others = (_class_iou_by_seed(standings, ranking, name) for name in (row.contender, base.contender))
    bars = []
    for name, iou in row.class_iou.items():
        other = base.class_iou.get(name)
        if iou is None or other is None:
            continue
        seeds = [
            100 * (one - two)
            for seed in sorted(own.keys() & others.keys())
            if (one := own[seed].get(name)) is not None and (two := others[seed].get(name)) is not None
        ]
        gain = iou - other
        bars.append(
            Bar(name=name, values=[100 * gain], seeds=seeds if len(seeds) > 1 else [], text=points(gain))
        )
    bars.sort(key=lambda bar: -bar.values[0])
    shown = extremes(bars)
    left_out = f" The {len(shown)} that differ most of {len(bars)}." if len(bars) > len(shown) else ""
    if not shown:
        return None
    return Figure(
        name=f"classes-{place}",
        title=f"{row.label} over {base.label}",
        caption=f"Points of IoU by class; dots are seeds.{left_out}",
        chart=BarChart(bars=shown, x_title=f"points of IoU over {base.label}"),
        alt="; ".join(f"{bar.name} {bar.text}" for bar in shown),
    )


def _cost_text(cost: Cost) -> str:
    over = "" if cost.over_baseline is None else f", {cost.over_baseline:.2f} \N{MULTIPLICATION SIGN}"
    return f"{cost.step_s:.3g} s{over}"


def _whose(cost: Cost) -> list[float]:
    """Seconds for data, student, loss, teacher and the rest, which sum up to the step.

    A loss within the noise of its step can come out below zero: then the student's part is that much shorter.
    """
    parts, beyond = cost.parts, (cost.loss_s or 0.0, cost.teacher_s or 0.0)
    data = parts.get(PARTS[WAIT], 0.0) + parts.get(PARTS[COPY], 0.0)
    student = max(0.0, (cost.student_s or 0.0) + sum(min(0.0, seconds) for seconds in beyond))
    return [data, student, *(max(0.0, seconds) for seconds in beyond), parts.get(PARTS[OTHER], 0.0)]


def _stacks(name: str, title: str, about: str, bars: Sequence[Bar], parts: Mapping[str, str]) -> Figure:
    alt = "; ".join(
        f"{bar.name}: "
        + ", ".join(f"{part} {value:.3g} s" for part, value in zip(parts, bar.values, strict=True))
        for bar in bars
    )
    chart = BarChart(bars=bars, parts=parts, x_title="seconds a step")
    return Figure(name=name, title=title, caption=about, chart=chart, alt=alt)


def _class_iou_by_seed(
    standings: Standings, ranking: Ranking, contender: str
) -> dict[int, Mapping[str, float | None]]:
    return {
        a.start.seed: a.record.scores["iou"]
        for a in standings.accounts
        if a.status == COMPLETE and a.start.rung == ranking.rung and not a.start.again
        if a.start.contender.name == contender and a.record and a.record.scores
    }
