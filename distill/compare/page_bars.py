"""The page's bars: what a step costs, and differences by class. Every function gives "" where nothing is to draw."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from kdcache.distill.clock import COPY, OTHER, PARTS, WAIT
from kdcache.distill.compare.account import COMPLETE
from kdcache.distill.compare.page_charts import NOTHING, figure
from kdcache.distill.compare.ranking import Ranking, Row
from kdcache.distill.compare.standings import Standings
from kdcache.distill.compare.step_cost import Cost
from kdcache.distill.compare.verdict import points
from kdcache.distill.report.bars import Bar, Stack, draw_differences, draw_stacks, legend
from kdcache.distill.report.markup import Markup, join

MOST_CLASSES = 24
T = TypeVar("T")
PART_COLOURS = dict(zip(PARTS.values(), ("p0", "p1", "p2", "p3", "p4", "p6"), strict=True))
WHOSE_COLOURS = {"data": "p0", "student": "p2", "loss": "p4", "teacher": "p5", "other": "p6"}


def cost_figures(standings: Standings) -> list[Markup]:
    """A step by whose work it is, and by the parts that the clock saw; one bar each for runs without a profile."""
    charted = standings.contest.charted
    costs = [cost for cost in standings.costs if cost.contender in charted]
    profiled = [cost for cost in costs if cost.parts]
    if not costs:
        return []
    about = "Seconds of a step, median, and over the baseline's."
    if not profiled:
        bars = [Stack(name=cost.contender, values=[cost.step_s], text=_cost_text(cost)) for cost in costs]
        return [figure("Cost of a step", about, _stacks(bars, {"a step": "p2"}))]
    by_whose = [Stack(name=c.contender, values=_whose(c), text=_cost_text(c)) for c in profiled]
    by_part = [
        Stack(
            name=c.contender,
            values=[c.parts.get(part, 0.0) for part in PART_COLOURS],
            text=f"{sum(c.parts.values()):.3g} s",
        )
        for c in profiled
    ]
    said = (
        "Student: what the baseline computes; loss: what the method computes beyond it; teacher: what it computes "
        "beyond that when the teacher runs along."
    )
    return [
        figure("Whose work", f"{about} {said}", _stacks(by_whose, WHOSE_COLOURS)),
        figure(
            "Which part",
            "Seconds that the clock gave to each part of a step.",
            _stacks(by_part, PART_COLOURS),
        ),
    ]


def class_figures(standings: Standings, ranking: Ranking) -> list[Markup]:
    """IoU by class over the baseline's, of the two best that are not the baseline."""
    baseline = standings.contest.baseline.name
    best = [row for row in ranking.rows if row.contender != baseline and row.class_iou][:2]
    base = next((row for row in ranking.rows if row.contender == baseline and row.class_iou), None)
    return [_class_figure(standings, ranking, row, base) for row in best] if base else []


def _class_figure(standings: Standings, ranking: Ranking, row: Row, base: Row) -> Markup:
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
        shown = seeds if len(seeds) > 1 else []
        bars.append(Bar(name=name, value=100 * (iou - other), seeds=shown, text=points(iou - other)))
    bars.sort(key=lambda bar: -bar.value)
    shown_bars = extremes(bars)
    if not shown_bars:
        return NOTHING
    left_out = (
        f" The {len(shown_bars)} that differ most of {len(bars)}." if len(bars) > len(shown_bars) else ""
    )
    return figure(
        f"{row.contender} over {base.contender}",
        f"Points of IoU by class; dots are seeds.{left_out}",
        draw_differences(
            shown_bars,
            title="; ".join(f"{bar.name} {bar.text}" for bar in shown_bars),
            x_title=f"points of IoU over {base.contender}",
        ),
    )


def extremes(ordered: Sequence[T]) -> list[T]:
    """The first and the last of a long list, all of a short one."""
    half = MOST_CLASSES // 2
    return list(ordered) if len(ordered) <= MOST_CLASSES else [*ordered[:half], *ordered[-half:]]


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


def _stacks(bars: Sequence[Stack], parts: Mapping[str, str]) -> Markup:
    title = "; ".join(
        f"{bar.name}: "
        + ", ".join(f"{part} {value:.3g} s" for part, value in zip(parts, bar.values, strict=True))
        for bar in bars
    )
    drawn = draw_stacks(bars, parts, title=title, x_title="seconds a step")
    return join(legend(parts) if len(parts) > 1 else None, drawn)


def _class_iou_by_seed(
    standings: Standings, ranking: Ranking, contender: str
) -> dict[int, Mapping[str, float | None]]:
    return {
        o.start.seed: o.record.scores["iou"]
        for o in standings.outcomes
        if o.status == COMPLETE and o.start.rung == ranking.rung and not o.start.again
        if o.start.contender.name == contender and o.record and o.record.scores
    }
