"""Standings as files: standings.json, standings.csv (a line a run) and report.md with its figures."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.cache.errors import KDCacheError
from kdcache.distill import runfolder
from kdcache.distill.compare.markdown import report_parts
from kdcache.distill.compare.standings import Standings
from kdcache.distill.report.figures import Curve, draw_class_iou, draw_miou
from kdcache.distill.report.report import REPORT, make_figures, write_parts

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
        write_parts(folder / REPORT, report_parts(folder, standings))
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


def _draw(folder: Path, standings: Standings) -> None:
    figures = make_figures(folder)
    rung, seed = standings.main.rung, standings.contest.seeds[0]
    curves = [
        Curve(name=o.start.contender.name, steps=curve.steps, seconds=curve.seconds, miou=curve.miou)
        for o in standings.outcomes
        if o.record and o.start.rung == rung and o.start.seed == seed and not o.start.again
        if (curve := o.record.curve()).steps
    ]
    if curves:
        draw_miou(figures / "miou.png", curves, standings.contest.teacher.get("miou"))
    iou = {row.contender: row.class_iou for row in standings.main.rows if row.class_iou}
    if iou:
        names = list(next(iter(iou.values())))
        by_row: Mapping[str, Sequence[Any]] = {
            name: [of_row.get(c) for c in names] for name, of_row in iou.items()
        }
        draw_class_iou(figures / "class_iou.png", names, by_row)
