"""Standings as Markdown."""

from pathlib import Path

from kdcache.cache.storage.urls import redact
from kdcache.distill.clock import PARTS
from kdcache.distill.compare.account import COMPLETE, FAILED
from kdcache.distill.compare.breakdown import Ladder, Views
from kdcache.distill.compare.intervals import CONFIDENCE, Difference
from kdcache.distill.compare.ranking import Ranking, Row
from kdcache.distill.compare.standings import Standings
from kdcache.distill.report.report import figure, markdown_table, percent
from kdcache.distill.units import duration_text


def ranking_title(ranking: Ranking) -> str:
    """As in "30 min of training" or "2000 steps, those of the baseline in 30 min"."""
    rung = ranking.rung
    if rung.clock == "time":
        return f"{duration_text(rung.budget_s or 0.0)} of training"
    count = "an unknown number of" if ranking.steps is None else ranking.steps
    of_budget = "" if rung.budget_s is None else f", those of the baseline in {duration_text(rung.budget_s)}"
    return f"{count} steps{of_budget}"


def ranking_table(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text."""
    header = ["rank", "method", "mIoU %", "seeds", "to the baseline", "steps", "training", "of the teacher"]
    return header, [_cells(row) for row in ranking.rows]


def difference_text(difference: Difference) -> str:
    """Points of mIoU, their interval, and whether it leaves zero out."""
    mean = f"{100 * difference.mean:+.2f}"
    if difference.low is None or difference.high is None:
        return f"{mean} (one seed)"
    interval = f"{mean} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
    return interval if difference.separable else f"{interval} not separable"


def _cells(row: Row) -> list[str]:
    return [
        "-" if row.rank is None else str(row.rank),
        row.contender,
        percent(row.miou),
        str(len(row.by_seed)),
        difference_text(row.difference) if row.difference else "",
        "-" if row.steps is None else f"{row.steps:.0f}",
        "-" if row.training_s is None else duration_text(row.training_s),
        "-" if row.over_teacher is None else f"{100 * row.over_teacher:.1f} %",
    ]


def report_parts(folder: Path, standings: Standings) -> list[str]:
    """The sections; pictures are those in the comparison's folder."""
    return [
        "# Comparison",
        _summary(standings),
        "\n".join(f"- **{caution}**" for caution in standings.cautions),
        *(
            f"## {ranking_title(ranking)}\n\n{markdown_table(*ranking_table(ranking))}"
            for ranking in standings.rankings
        ),
        _moves(standings),
        _lengths(standings),
        _views(standings),
        figure(folder, "miou", "mIoU while training, first seed"),
        _costs(standings),
        _teacher(standings),
        _noise(standings),
        _classes(standings),
        figure(folder, "class_iou", f"IoU by class, {ranking_title(standings.main)}"),
        _accounts(standings),
        _failures(standings),
        _repeat(standings),
    ]


def _summary(standings: Standings) -> str:
    contest, document = standings.contest, standings.to_dict()
    dataset, place = document["dataset"], document["environment"]
    done = sum(outcome.status == COMPLETE for outcome in standings.outcomes)
    facts = {
        "runs": f"{done} of {len(standings.outcomes)} complete",
        "seeds": ", ".join(map(str, contest.seeds)),
        "dataset": f"{dataset['name']} {dataset['split'] or ''}".strip(),
        "scored on": f"{dataset['eval_images']} images of {dataset['eval_split']}",
        "teacher": contest.teacher.get("name"),
        "teacher's mIoU": percent(contest.teacher["miou"]) + " %" if "miou" in contest.teacher else None,
        "store": redact(str(contest.run.get("store", ""))),
        "device": place.get("device"),
        "processes a run": contest.processes,
        "packages": ", ".join(f"{k} {v}" for k, v in place.get("packages", {}).items() if v),
    }
    notes = (
        f"mIoU is the mean over seeds of the last checkpoints. Differences to {contest.baseline.name} are paired by "
        f"seed, with {100 * CONFIDENCE:.0f} % intervals of Student's t; what holds zero is not separable."
    )
    table = markdown_table(["", ""], [[name, str(value)] for name, value in facts.items() if value])
    return f"{table}\n\n{notes}"


def _moves(standings: Standings) -> str:
    if len(standings.contest.clocks) < 2:
        return ""
    rows = [
        [move.time_rung, move.contender, str(move.by_time), str(move.by_steps)] for move in standings.moves
    ]
    if not rows:
        return "## What changed place\n\nNothing: both clocks rank alike."
    return f"## What changed place\n\n{markdown_table(['budget', 'method', 'by time', 'by steps'], rows)}"


def _lengths(standings: Standings) -> str:
    """Every contender of several lengths, with its points above the baseline."""
    ladder = Ladder.of(standings)
    if ladder is None:
        return ""
    rows = []
    for name, points in ladder.points.items():
        at = dict(points)
        rows.append([name, *(_score(at.get(length)) for length in ladder.lengths)])
    lengths = [
        duration_text(length) if ladder.clock == "time" else f"{length:.0f} steps"
        for length in ladder.lengths
    ]
    return (
        "## By length\n\nmIoU in percent, and points above the baseline; every cell is a run of its own, with a schedule of "
        f"that length.\n\n{markdown_table(['method', *lengths], rows)}"
    )


def _views(standings: Standings) -> str:
    """Methods over the number of views, and the teacher running along on fresh views as their limit."""
    views = Views.of(standings)
    if views is None:
        return ""
    numbers = sorted({at for points in views.points.values() for at, _ in points})
    rows = []
    for method, points in views.points.items():
        at = dict(points)
        rows.append(
            [method, *(_score(at.get(number)) for number in numbers), _score(views.online.get(method))]
        )
    header = ["method", *(f"{number:g}" for number in numbers), "online, fresh views"]
    about = "mIoU in percent by how many views of an image are stored, and points above the baseline"
    return f"## By views\n\n{ranking_title(views.ranking)}; {about}.\n\n{markdown_table(header, rows)}"


def _costs(standings: Standings) -> str:
    words = list(PARTS.values())
    rows = [
        [
            cost.contender,
            f"{cost.step_s:.3g}",
            _number(cost.over_baseline),
            *(_number(cost.parts.get(part)) for part in words),
            *(_number(share) for share in (cost.student_s, cost.loss_s, cost.teacher_s)),
        ]
        for cost in standings.costs
    ]
    if not rows:
        return ""
    header = ["method", "s a step", "over the baseline", *words, "student", "loss", "teacher"]
    return (
        f"## Cost of a step\n\nSeconds, over the baseline round by round. Student is what the baseline computes, loss what the method computes beyond it "
        f"from the cache, teacher what it computes beyond that when the teacher runs along.\n\n"
        f"{markdown_table(header, rows)}"
    )


def _teacher(standings: Standings) -> str:
    cost = standings.teacher_cost
    if cost is None:
        return ""
    rows = [
        [
            ranking.rung.name,
            row.contender,
            *(
                "-" if seconds is None else duration_text(seconds)
                for seconds in (row.training_s, row.with_teacher_s, row.with_shared_teacher_s)
            ),
        ]
        for ranking in standings.rankings
        for row in ranking.rows
    ]
    table = markdown_table(["length", "method", "training", "teacher whole", "teacher shared"], rows)
    return (
        f"## The teacher's cost\n\n{cost.passes} passes of the store took {duration_text(cost.build_s)} to build, at "
        f"the pace on record. {cost.runs} runs used it: {duration_text(cost.shared_s)} each on average. A run that was "
        f"confined to fewer passes bears their cost alone.\n\n{table}"
    )


def _noise(standings: Standings) -> str:
    rows = [
        [
            noise.rung,
            *(f"{percent(noise.miou[i])} / {noise.steps[i]} / {noise.step_s[i]:.3g}" for i in (0, 1)),
            f"{100 * noise.step_drift:+.1f} %",
        ]
        for noise in standings.noise
    ]
    if not rows:
        return ""
    table = markdown_table(
        ["length", "first: mIoU % / steps / s a step", "at the end", "a step's time"], rows
    )
    return f"## Noise\n\n{standings.contest.baseline.name} again with one seed, at the end of what was asked.\n\n{table}"


def _classes(standings: Standings) -> str:
    """IoU by class of the main ranking, as points above the baseline's."""
    ranking = standings.main
    iou = {row.contender: row.class_iou for row in ranking.rows if row.class_iou}
    base = iou.pop(standings.contest.baseline.name, None)
    if not base:
        return ""
    rows = [
        [name, percent(value), *(_points(of_row.get(name), value) for of_row in iou.values())]
        for name, value in base.items()
    ]
    header = ["class", f"{standings.contest.baseline.name} %", *iou]
    return f"## IoU by class\n\n{ranking_title(ranking)}; points above the baseline.\n\n{markdown_table(header, rows)}"


def _accounts(standings: Standings) -> str:
    rows = [
        [
            outcome.start.name,
            outcome.status,
            percent(outcome.miou),
            str(outcome.summary.steps) if outcome.summary else "-",
            *(
                "-" if seconds is None else duration_text(seconds)
                for seconds in (
                    *(outcome.training_s, outcome.wait_s, outcome.evaluation_s),
                    *(outcome.saving_s, outcome.startup_s, outcome.wall_s),
                )
            ),
        ]
        for outcome in standings.outcomes
    ]
    header = [
        *("run", "", "mIoU %", "steps", "training", "of it waiting"),
        *("evaluation", "checkpoints", "start-up", "in all"),
    ]
    return f"## Runs\n\nThe budget counts training alone.\n\n{markdown_table(header, rows)}"


def _failures(standings: Standings) -> str:
    lines = [f"- {o.start.name}: {o.error}" for o in standings.outcomes if o.status == FAILED]
    return "## Failed\n\n" + "\n".join(lines) if lines else ""


def _repeat(standings: Standings) -> str:
    lines = standings.contest.commands()
    lines += [outcome.command for outcome in standings.outcomes if outcome.command]
    return "## To repeat it, or a run of it\n\n```sh\n" + "\n".join(lines) + "\n```"


def _score(row: Row | None) -> str:
    """As in "60.10, +1.20 [+0.40, +2.00]"."""
    if row is None or row.miou is None:
        return "-"
    return percent(row.miou) + (f", {difference_text(row.difference)}" if row.difference else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _points(value: float | None, base: float | None) -> str:
    return "-" if value is None or base is None else f"{100 * (value - base):+.2f}"
