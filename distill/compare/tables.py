"""The tables of a comparison's report."""

from collections.abc import Sequence
from typing import Any

from kdcache.distill.compare.account import FAILED
from kdcache.distill.compare.breakdown import Views
from kdcache.distill.compare.breakdown_figures import extremes
from kdcache.distill.compare.contest import quoted
from kdcache.distill.compare.figures import Styles
from kdcache.distill.compare.ranking import Ranking, Row
from kdcache.distill.compare.standings import Standings
from kdcache.distill.report.model import Block, Cell, Column, Table, percent, points

TIMES = {
    "training_s": "training",
    "wait_s": "of it waiting",
    "evaluation_s": "evaluation",
    "saving_s": "checkpoints",
    "startup_s": "start-up",
    "wall_s": "in all",
}
CSV_FIELDS = (
    *("name", "contender", "rung", "seed", "again", "status", "error", "steps", "planned_steps", "step_s"),
    *("miou", "pixel_accuracy", *TIMES, "command"),
)


def ranking_table(ranking: Ranking, styles: Styles, baseline: str) -> Table:
    """The contenders of a length, the best first. Without places where the ranking shows nothing reliable."""
    rows = []
    for row in ranking.rows:
        coarse, difference = ranking.is_coarse(row), row.difference
        over = (difference.mean, difference.low, difference.high) if difference else None
        rows.append(
            [
                Cell(row.contender, label=row.label, style=styles[row.label]),
                None if ranking.doubt else row.rank,
                Cell(row.miou, coarse=coarse),
                Cell(over, coarse=coarse),
                _beyond_chance(row),
                *(len(row.by_seed), row.steps, row.training_s, row.over_teacher),
            ]
        )
    columns = [
        Column("method", key="contender"),
        Column("rank", "count", narrow=False),
        Column("mIoU %", "percent", key="miou"),
        Column(f"over {baseline}", "interval", key="over_baseline"),
        Column("beyond chance", "words", key="beyond_chance"),
        Column("seeds", "count", brief=False),
        Column("steps", "count", narrow=False),
        Column("training", "duration", key="training_s", narrow=False),
        Column("of the teacher", "share", key="over_teacher", brief=False),
    ]
    return Table.of(
        f"ranking-{ranking.rung.name}", f"After {ranking.title}", columns, rows, caution=ranking.doubt
    )


def length_tables(standings: Standings, shown: Sequence[Ranking], baseline: str) -> list[Block]:
    """Every length beside the others, where there are more than those that have tables of their own."""
    rankings = standings.rankings
    if len(rankings) <= len(shown):
        return []
    labels = standings.contest.labels
    by_ranking = [(ranking, {row.contender: row for row in ranking.rows}) for ranking in rankings]
    rows = [
        [Cell(name, label=label), *(_score(ranking, of.get(name)) for ranking, of in by_ranking)]
        for name, label in labels.items()
    ]
    caption = f"All lengths: mIoU in percent, and points over {quoted(baseline)}, in brackets where they could be chance"
    columns = [Column("method"), *(_words(r.short_title, r.rung.name) for r in rankings)]
    return [Table.of("lengths", caption, columns, rows)]


def view_tables(standings: Standings, baseline: str) -> list[Block]:
    """Methods over the number of stored views, and the teacher at every step on fresh views as their limit."""
    views = Views.of(standings)
    if views is None:
        return []
    numbers = sorted({at for found in views.points.values() for at, _ in found})
    rows = []
    for method, found in views.points.items():
        at = dict(found)
        cells = [_score(views.ranking, at.get(number)) for number in numbers]
        rows.append([method, *cells, _score(views.ranking, views.online.get(method))])
    columns = [
        Column("method"),
        *(_words(f"{number:g}") for number in numbers),
        _words("teacher at every step"),
    ]
    caption = (
        f"By stored views of an image, after {views.ranking.title}: mIoU in percent, and points over {quoted(baseline)}, in "
        "brackets where they could be chance"
    )
    return [Table.of("views", caption, columns, rows)]


def teacher_cost_tables(rankings: Sequence[Ranking]) -> list[Block]:
    """The time of a run alone, with all of the store's one-off cost, and with its share; columns that agree are merged."""
    titles = ["training", "with the whole teacher", "with its share"]
    rows = [
        [
            Cell(row.contender, label=row.label),
            *(ranking.short_title, row.training_s, row.with_teacher_s, row.with_shared_teacher_s),
        ]
        for ranking in rankings
        for row in ranking.rows
        if row.training_s is not None
    ]
    columns = [Column("method"), Column("length"), *(Column(t, "duration") for t in titles)]
    caption = "Time of a run, with the store's one-off cost both ways"
    return [Table.of("teacher-cost", caption, columns, rows).merged(titles)] if rows else []


def class_tables(standings: Standings, ranking: Ranking) -> list[Block]:
    """IoU by class: the baseline's, and every other method's as points above it, the most gained first."""
    labels, baseline = standings.contest.labels, standings.contest.baseline.name
    iou = {row.contender: row.class_iou for row in ranking.rows if row.class_iou}
    base = iou.pop(baseline, None)
    if teacher := standings.contest.teacher.get("iou"):
        iou["teacher"] = teacher
    if not base or not iou:
        return []
    gains = {name: [_gain(of.get(name), value) for of in iou.values()] for name, value in base.items()}
    known = {name: [gain for gain in of if gain is not None] for name, of in gains.items()}
    order = sorted((name for name in known if known[name]), key=lambda n: -sum(known[n]) / len(known[n]))
    largest = max((abs(gain) for of in known.values() for gain in of), default=0.0)
    shown, coarse = extremes(order), ranking.doubt is not None
    rows = [
        [
            name,
            Cell(base[name], coarse=coarse),
            *(Cell(gain, coarse=coarse, shade=_shade(gain, largest)) for gain in gains[name]),
        ]
        for name in shown
    ]
    left_out = (
        "" if len(shown) == len(order) else f" The {len(shown)} that differ most of {len(order)} classes."
    )
    caption = f"IoU by class: {quoted(labels[baseline])} in percent, the others in points over it.{left_out}"
    columns = [
        Column("class"),
        Column(f"{labels[baseline]} %", "percent", key=baseline),
        *(Column(labels.get(name, name), "points", key=name) for name in iou),
    ]
    return [Table.of("classes", caption, columns, rows)]


def noise_tables(standings: Standings) -> list[Block]:
    titles = {ranking.rung.name: ranking.short_title for ranking in standings.rankings}
    rows = [
        [
            *(Cell(noise.rung, label=titles[noise.rung]), noise.seed),
            *(value for at in (noise.miou, noise.steps, noise.step_s) for value in at),
            noise.step_drift,
        ]
        for noise in standings.noise
    ]
    columns = [Column("length"), Column("seed", "count")]
    for title, kind in (("mIoU %", "percent"), ("steps", "count"), ("s a step", "number")):
        columns += [Column(f"{title} first", kind), Column(f"{title} at the end", kind)]
    columns.append(Column("change of a step", "change", key="step_drift"))
    contest = standings.contest
    caption = f"{quoted(contest.labels[contest.baseline.name])} again with one seed: among the others, and at the end"
    return [Table.of("noise", caption, columns, rows)] if rows else []


def account_table(standings: Standings) -> Table:
    """Where the time went, summed over the runs of a contender."""
    rows = []
    for contender in standings.contest.contenders:
        own = [a for a in standings.accounts if a.start.contender == contender and a.record]
        sums = (sum(getattr(account, name) or 0.0 for account in own) for name in TIMES)
        label = standings.contest.labels[contender.name]
        rows.append([Cell(contender.name, label=label), len(own), *sums])
    columns = [
        Column("method"),
        Column("runs", "count"),
        *(Column(title, "duration", key=name) for name, title in TIMES.items()),
    ]
    return Table.of(
        "time", "Where the time went, over all runs. The budget counts training alone", columns, rows
    )


def failure_tables(standings: Standings) -> list[Block]:
    rows = [[a.start.name, a.error, a.hint] for a in standings.accounts if a.status == FAILED]
    columns = [Column("run"), Column("error"), Column("what may help", key="hint")]
    return [Table.of("failed", "Runs that failed", columns, rows)] if rows else []


def run_sheet(standings: Standings) -> Table:
    """A row for each run, as standings.csv has them: fractions and seconds."""
    runs = [account.to_dict() for account in standings.accounts]
    columns = [Column(name) for name in CSV_FIELDS]
    return Table.of("runs", "Runs", columns, [[run[name] for name in CSV_FIELDS] for run in runs])


def _words(title: str, key: str = "") -> Column:
    return Column(title, "words", key=key)


def _score(ranking: Ranking, row: Row | None) -> str | None:
    """As in "60.10 +1.20", or "60.10 (+0.20)" where the difference could be chance."""
    if row is None or row.miou is None:
        return None
    coarse = ranking.is_coarse(row)
    if row.difference is None:
        return percent(row.miou, coarse)
    gain = points(row.difference.mean, coarse)
    return f"{percent(row.miou, coarse)} {gain if row.difference.separable else f'({gain})'}"


def _beyond_chance(row: Row) -> str:
    if row.difference is None:
        return ""
    if row.difference.separable is None:
        return "one seed"
    return "yes" if row.difference.separable else "no"


def _gain(value: Any, base: Any) -> float | None:
    return None if value is None or base is None else value - base


def _shade(gain: float | None, largest: float) -> int:
    """Darker the larger the difference is, in thirds of the largest."""
    if not gain or not largest:
        return 0
    third = min(2, int(3 * abs(gain) / largest))
    return third if gain > 0 else -third
