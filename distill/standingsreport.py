"""Standings as files: standings.json, standings.csv (a line a run) and report.md with its figures."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.cache.errors import KDCacheError
from kdcache.cache.urls import redact
from kdcache.distill import runfolder
from kdcache.distill.account import COMPLETE, FAILED
from kdcache.distill.clock import PARTS
from kdcache.distill.durations import duration_text
from kdcache.distill.figures import Curve, draw_class_iou, draw_miou
from kdcache.distill.intervals import CONFIDENCE, Difference
from kdcache.distill.rankings import Ranking, Row
from kdcache.distill.report import REPORT, figure, make_figures, markdown_table, percent, write_parts
from kdcache.distill.standings import Standings

STANDINGS = "standings.json"
TABLE = "standings.csv"

CSV_FIELDS = (
    *("name", "contender", "rung", "seed", "again", "status", "error", "steps", "planned_steps", "step_s"),
    *("miou", "pixel_accuracy", "training_s", "wait_s", "evaluation_s", "saving_s", "startup_s", "wall_s"),
    "command",
)


def write_standings(folder: Path) -> Standings:
    """Write what came of the comparison in `folder` so far beside it.

    Raises:
        NotFoundError: there is no comparison.
        KDCacheError: the folder cannot be written to.
    """
    standings = Standings.read(folder)
    try:
        runfolder.write_json(folder / STANDINGS, standings.to_dict())
        (folder / TABLE).write_text(runs_csv(standings))
        _draw(folder, standings)
        write_parts(folder / REPORT, _parts(folder, standings))
    except OSError as error:
        raise KDCacheError(f"cannot write to {folder}: {error.strerror}", hint="--out DIR") from None
    return standings


def runs_csv(standings: Standings) -> str:
    """A header and a line a run; fractions and seconds, empty where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(outcome.to_dict() for outcome in standings.outcomes)
    return text.getvalue()


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


def _parts(folder: Path, standings: Standings) -> list[str]:
    return [
        "# Comparison",
        _summary(standings),
        "\n".join(f"- **{caution}**" for caution in standings.cautions),
        *(
            f"## {ranking_title(ranking)}\n\n{markdown_table(*ranking_table(ranking))}"
            for ranking in standings.rankings
        ),
        _moves(standings),
        figure(folder, "miou", "mIoU while training, first seed"),
        _costs(standings),
        _teacher(standings),
        _noise(standings),
        _classes(standings),
        figure(folder, "class_iou", "IoU by class, longest budget"),
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
        f"## Cost of a step\n\nSeconds. Student is what the baseline computes, loss what the method computes beyond it "
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
        f"the pace on record. {cost.runs} runs used it: {duration_text(cost.shared_s)} for each.\n\n{table}"
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
    return f"## Noise\n\n{standings.contest.baseline.name}, twice with one seed.\n\n{table}"


def _classes(standings: Standings) -> str:
    """IoU by class on the longest rung of the first clock, as points above the baseline's."""
    ranking = _longest(standings)
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
    lines = [standings.contest.command()]
    lines += [outcome.command for outcome in standings.outcomes if outcome.command]
    return "## To repeat it, or a run of it\n\n```sh\n" + "\n".join(lines) + "\n```"


def _draw(folder: Path, standings: Standings) -> None:
    figures = make_figures(folder)
    rung, seed = _longest(standings).rung, standings.contest.seeds[0]
    curves = [
        Curve(name=o.start.contender.name, steps=curve.steps, seconds=curve.seconds, miou=curve.miou)
        for o in standings.outcomes
        if o.record and o.start.rung == rung and o.start.seed == seed and not o.start.again
        if (curve := o.record.curve()).steps
    ]
    if curves:
        draw_miou(figures / "miou.png", curves, standings.contest.teacher.get("miou"))
    iou = {row.contender: row.class_iou for row in _longest(standings).rows if row.class_iou}
    if iou:
        names = list(next(iter(iou.values())))
        by_row: Mapping[str, Sequence[Any]] = {
            name: [of_row.get(c) for c in names] for name, of_row in iou.items()
        }
        draw_class_iou(figures / "class_iou.png", names, by_row)


def _longest(standings: Standings) -> Ranking:
    """The last rung of the first clock."""
    first = [r for r in standings.rankings if r.rung.clock == standings.contest.clocks[0]]
    return max(first, key=lambda ranking: ranking.rung.budget_s or ranking.rung.steps or 0)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _points(value: float | None, base: float | None) -> str:
    return "-" if value is None or base is None else f"{100 * (value - base):+.2f}"
