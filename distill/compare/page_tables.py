"""The page's tables: what standings hold, in figures. Every function gives "" where there is nothing to show."""

from collections.abc import Sequence

from kdcache.distill.compare.account import FAILED
from kdcache.distill.compare.markdown import ranking_title
from kdcache.distill.compare.page_bars import extremes
from kdcache.distill.compare.page_charts import NOTHING, Looks
from kdcache.distill.compare.ranking import Ranking, Row
from kdcache.distill.compare.standings import Standings
from kdcache.distill.compare.verdict import interval_text, points
from kdcache.distill.report.markup import Child, Markup, join, tag
from kdcache.distill.report.report import percent
from kdcache.distill.report.styles import key
from kdcache.distill.units import duration_text


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Child]],
    *,
    words: int = 1,  # columns of text at the left; the others are numbers
    class_: str | None = None,
) -> Markup:
    """A table that scrolls by itself where the page is narrow; a row's first cell names it."""
    sides = [None if index < words else "n" for index in range(len(header))]
    head = tag(
        "tr", *(tag("th", name, scope="col", class_=side) for name, side in zip(header, sides, strict=True))
    )
    body = [
        tag(
            "tr",
            *(
                cell
                if isinstance(cell, Markup) and cell.startswith("<td")
                else tag("th" if index == 0 else "td", cell, scope="row" if index == 0 else None, class_=side)
                for index, (cell, side) in enumerate(zip(row, sides, strict=True))
            ),
        )
        for row in rows
    ]
    drawn = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_=class_)
    return tag("div", drawn, class_="scroll", tabindex=0, role="region", aria_label=caption)


def ranking_table(ranking: Ranking, looks: Looks, baseline: str) -> Markup:
    caption = f"After {ranking_title(ranking)}"
    header = [
        "method",
        "rank",
        "mIoU %",
        f"over {baseline}",
        "separable",
        "seeds",
        "steps",
        "training",
        "of the teacher",
    ]
    rows: list[list[Child]] = []
    for row in ranking.rows:
        rows.append(
            [
                join(key(looks[row.contender]), row.contender),
                _or_dash(row.rank),
                percent(row.miou),
                interval_text(row.difference) if row.difference else "",
                _verdict(row),
                len(row.by_seed),
                _or_dash(None if row.steps is None else f"{row.steps:.0f}"),
                _seconds(row.training_s),
                "-" if row.over_teacher is None else f"{100 * row.over_teacher:.1f} %",
            ]
        )
    return table(caption, header, rows)


def length_table(standings: Standings, baseline: str) -> Markup:
    """Every length beside the others, where there are more than the two that have tables of their own."""
    rankings = standings.rankings
    if len(rankings) < 3:
        return NOTHING
    by_ranking = [{row.contender: row for row in ranking.rows} for ranking in rankings]
    rows: list[list[Child]] = [
        [contender.name, *(_at_length(of.get(contender.name)) for of in by_ranking)]
        for contender in standings.contest.contenders
    ]
    caption = (
        f"All lengths: mIoU in percent, and points over {baseline}, in brackets where not separable from it"
    )
    return table(caption, ["method", *(_short_title(ranking) for ranking in rankings)], rows)


def teacher_cost_table(rankings: Sequence[Ranking]) -> Markup:
    rows: list[list[Child]] = [
        [
            row.contender,
            _short_title(ranking),
            _seconds(row.training_s),
            _seconds(row.with_teacher_s),
            _seconds(row.with_shared_teacher_s),
        ]
        for ranking in rankings
        for row in ranking.rows
        if row.training_s is not None
    ]
    header = ["method", "length", "training", "with the whole teacher", "with its share"]
    return table("Time of a run, with the store's one-off cost both ways", header, rows, words=2)


def class_table(standings: Standings, ranking: Ranking) -> Markup:
    """IoU by class: the baseline's, and every other method's as points above it, the most gained first."""
    baseline = standings.contest.baseline.name
    iou = {row.contender: row.class_iou for row in ranking.rows if row.class_iou}
    base = iou.pop(baseline, None)
    if teacher := standings.contest.teacher.get("iou"):
        iou["teacher"] = teacher
    if not base or not iou:
        return NOTHING
    gains = {
        name: [None if value is None or of.get(name) is None else of[name] - value for of in iou.values()]  # type: ignore[operator]
        for name, value in base.items()
    }
    known = {name: [gain for gain in of if gain is not None] for name, of in gains.items()}
    order = sorted(
        (name for name in known if known[name]), key=lambda name: -sum(known[name]) / len(known[name])
    )
    largest = max((abs(gain) for of in known.values() for gain in of), default=0.0)
    shown = extremes(order)
    rows = [
        [name, percent(base[name]), *(_gain_cell(gain, largest) for gain in gains[name])] for name in shown
    ]
    left_out = (
        "" if len(shown) == len(order) else f" The {len(shown)} that differ most of {len(order)} classes."
    )
    caption = f"IoU by class: {baseline} in percent, the others in points over it.{left_out}"
    return table(caption, ["class", f"{baseline} %", *iou], rows, class_="heat")


def noise_table(standings: Standings) -> Markup:
    rows: list[list[Child]] = [
        [
            noise.rung,
            noise.seed,
            *(f"{percent(noise.miou[at])}" for at in (0, 1)),
            *(noise.steps[at] for at in (0, 1)),
            *(f"{noise.step_s[at]:.3g}" for at in (0, 1)),
            f"{100 * noise.step_drift:+.1f} %".replace("-", "\N{MINUS SIGN}"),
        ]
        for noise in standings.noise
    ]
    if not rows:
        return NOTHING
    header = [
        *("length", "seed", "mIoU % first", "at the end", "steps first", "at the end"),
        *("s a step first", "at the end", "change"),
    ]
    return table(
        f"{standings.contest.baseline.name} again with one seed: among the others, and at the end",
        header,
        rows,
    )


def account_table(standings: Standings) -> Markup:
    """Where the time went, summed over the runs of a contender."""
    rows: list[list[Child]] = []
    for contender in standings.contest.contenders:
        own = [o for o in standings.outcomes if o.start.contender == contender and o.record]
        times = (
            [outcome.training_s for outcome in own],
            [outcome.wait_s for outcome in own],
            [outcome.evaluation_s for outcome in own],
            [outcome.saving_s for outcome in own],
            [outcome.startup_s for outcome in own],
            [outcome.wall_s for outcome in own],
        )
        sums = (sum(seconds for seconds in of if seconds is not None) for of in times)
        rows.append([contender.name, len(own), *(_seconds(total) for total in sums)])
    header = [
        *("method", "runs", "training", "of it waiting"),
        *("evaluation", "checkpoints", "start-up", "in all"),
    ]
    return table("Where the time went, over all runs. The budget counts training alone", header, rows)


def failure_table(standings: Standings) -> Markup:
    failed = [outcome for outcome in standings.outcomes if outcome.status == FAILED]
    if not failed:
        return NOTHING
    rows: list[list[Child]] = [
        [o.start.name, tag("span", o.error, class_="error"), o.hint or ""] for o in failed
    ]
    return table("Runs that failed", ["run", "error", "what may help"], rows, words=3)


def fact_table(caption: str, facts: Sequence[tuple[str, Child]]) -> Markup:
    return table(
        caption, ["", ""], [[name, value] for name, value in facts if value not in (None, "")], words=2
    )


def _at_length(row: Row | None) -> str:
    if row is None or row.miou is None:
        return "-"
    if row.difference is None:
        return percent(row.miou)
    gain = points(row.difference.mean)
    return f"{percent(row.miou)} {gain if row.difference.separable else f'({gain})'}"


def _short_title(ranking: Ranking) -> str:
    return (
        duration_text(ranking.rung.budget_s or 0.0)
        if ranking.rung.clock == "time"
        else f"{ranking.steps or '?'} steps"
    )


def _verdict(row: Row) -> str:
    if row.difference is None:
        return ""
    if row.difference.separable is None:
        return "one seed"
    return "yes" if row.difference.separable else "no"


def _gain_cell(gain: float | None, largest: float) -> Markup:
    """A cell that is darker the larger the difference is, in thirds of the largest."""
    if gain is None:
        return tag("td", "-", class_="n")
    third = min(2, int(3 * abs(gain) / largest)) if largest else 0
    shade = "" if third == 0 else f" {'g' if gain > 0 else 'b'}{third}"
    return tag("td", points(gain), class_=f"n{shade}")


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else duration_text(seconds)


def _or_dash(value: Child) -> Child:
    return "-" if value is None else value
