"""The report of several runs side by side: a table, their curves, and what else than the method differs.

OUT/report.html  OUT/report.md  OUT/report.json  OUT/report.csv  OUT/figures/
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.cache.storage.urls import redact
from kdcache.distill.config import FREE_ON_RESUME, option_of
from kdcache.distill.report.charts import ClassChart, Limit
from kdcache.distill.report.curves import miou_figures
from kdcache.distill.report.model import Block, Cell, Column, Facts, Figure, Links, Report, Section, Table
from kdcache.distill.report.record import FEWEST_STEPS, RunRecord, RunSummary, read_runs, weak_teacher
from kdcache.distill.report.run_report import run_cautions, steps_text
from kdcache.distill.report.styles import Style, give_styles
from kdcache.distill.report.write import REPORT, write_files

# Settings that have a column of their own, or that are compared by what the run was pinned to.
_SHOWN = frozenset({"method", "source", "steps", "epochs", "budget_seconds", "dataset", "split", "teacher"})


def write_comparison(
    folders: Sequence[str | Path], out: str | Path, *, teacher: Mapping[str, Any] | None = None
) -> Path:
    """Compare runs in a report of their own under `out`; returns the path of report.md.

    Args:
        teacher: its scores if they are known, with "name", "miou" and "pixel_accuracy".

    Raises:
        NotFoundError: a folder contains no run.
        KDCacheError: writing to `out` fails.
    """
    return write_files(comparison_report(folders, Path(out), teacher=teacher), Path(out))


def comparison_report(
    folders: Sequence[str | Path], out: Path, *, teacher: Mapping[str, Any] | None = None
) -> Report:
    """What several runs say together. Raises NotFoundError if a folder contains no run."""
    runs = read_runs(folders)
    summaries = [run.summary() for run in runs]
    table, styles = comparison_table(summaries, teacher), give_styles([run.name for run in runs])
    pinned = _pinned(runs)
    differing = [
        f"Differs: {name}: {', '.join(value or repr(value) for value in values)}."
        for name, values in _differing(runs, summaries, pinned)
    ]
    early = [caution for summary in summaries for caution in run_cautions(summary)]
    links = [(run.name, os.path.relpath(run.folder / REPORT, out)) for run in runs]
    return Report(
        title="Comparison",
        lead=[],
        about="Scores are of the last checkpoint. Training time leaves out start-up, evaluation and checkpoints.",
        cautions=[*differing, *early, *_weak_teacher(summaries, teacher)],
        facts=Facts([(name, values[0]) for name, values in pinned.items() if len(set(values)) == 1]),
        sections=[
            Section("Runs", [table], brief=True),
            Section("While training", _curves(runs, styles, teacher)),
            Section("IoU by class", _classes(runs, styles)),
            Section("Reports of the runs", [Links(links)]),
        ],
        data={"runs": [summary.to_dict() for summary in summaries], "teacher": teacher},
        sheet=table,
    )


def compare_runs(folders: Sequence[str | Path]) -> list[RunSummary]:
    """One summary for each run, in the order given. Raises NotFoundError if a folder contains no run."""
    return [run.summary() for run in read_runs(folders)]


def comparison_table(summaries: Sequence[RunSummary], teacher: Mapping[str, Any] | None = None) -> Table:
    """A row for each run; `vs none` is against the first run without a teacher. Scores of short runs have no decimals."""
    base = _baseline(summaries)
    baseline, base_is_short = (base.miou, base.is_short) if base else (None, False)
    columns = [
        Column("run"),
        Column("method"),
        Column("source", narrow=False),
        Column("asked for", key="length", narrow=False),
        Column("steps", "words"),
        Column("training", "duration", key="training_s"),
        Column("s/step", "number", key="step_s", narrow=False),
        Column("waiting", "share", key="wait_share", narrow=False),
        Column("mIoU %", "percent", key="miou"),
        Column("vs none", "points", key="over_none"),
        Column("pixel acc. %", "percent", key="pixel_accuracy", narrow=False),
    ]
    rows: list[list[Any]] = [
        [
            summary.name + ("" if summary.complete else " (unfinished)"),
            *(summary.method, summary.source, summary.length, steps_text(summary)),
            *(summary.training_s, summary.step_s, summary.wait_share),
            Cell(summary.miou, coarse=summary.is_short),
            Cell(_over(summary.miou, baseline), coarse=summary.is_short or base_is_short),
            Cell(summary.pixel_accuracy, coarse=summary.is_short),
        ]
        for summary in summaries
    ]
    if teacher is not None:
        gain = Cell(_over(teacher["miou"], baseline), coarse=base_is_short)
        scores = [teacher["miou"], gain, teacher.get("pixel_accuracy")]
        rows.append([str(teacher.get("name", "teacher")), "(teacher)", *[None] * 6, *scores])
    return Table.of("runs", "Scores and times", columns, rows, caution=_too_short(summaries))


def _too_short(summaries: Sequence[RunSummary]) -> str | None:
    """Why the scores of some runs show nothing reliable."""
    short = [summary.name for summary in summaries if summary.is_short and summary.miou is not None]
    if not short:
        return None
    return (
        f"{', '.join(short)}: fewer than {FEWEST_STEPS} steps. Scores of so short runs show nothing reliable, so they are "
        "rounded to whole percent."
    )


def _over(miou: float | None, baseline: float | None) -> float | None:
    return None if miou is None or baseline is None else miou - baseline


def _baseline(summaries: Sequence[RunSummary]) -> RunSummary | None:
    """The first run without a teacher that has a score."""
    return next((s for s in summaries if s.method == "none" and s.miou is not None), None)


def _curves(
    runs: Sequence[RunRecord], styles: Mapping[str, Style], teacher: Mapping[str, Any] | None
) -> list[Figure]:
    limits = [] if teacher is None else [Limit(name="teacher", at=100 * teacher["miou"])]
    curves = {run.name: [run.curve()] for run in runs}
    return [figure for clock in ("steps", "time") for figure in miou_figures(curves, styles, limits, clock)]


def _classes(runs: Sequence[RunRecord], styles: Mapping[str, Style]) -> list[Block]:
    scored = {run.name: run.scores["iou"] for run in runs if run.scores}
    names = list(dict.fromkeys(name for iou in scored.values() for name in iou))
    if not names:
        return []
    by_run = {run: [_percent(iou.get(name)) for name in names] for run, iou in scored.items()}
    columns = [Column("class"), *(Column(run, "percent") for run in scored)]
    rows = [[name, *(iou.get(name) for iou in scored.values())] for name in names]
    best = {
        run: max((value for value in iou if value is not None), default=0.0) for run, iou in by_run.items()
    }
    return [
        Figure(
            name="class_iou",
            title="A marker for each run",
            caption="",
            chart=ClassChart(classes=names, iou=by_run, styles=styles),
            alt="; ".join(f"{run}: up to {value:.1f} %" for run, value in best.items()),
        ),
        Table.of("classes", "In percent", columns, rows),
    ]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _pinned(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """What runs learn from, a value for each run; of the teacher for each run that has one."""
    return {
        "dataset": [_dataset(run) for run in runs],
        "store": [redact(run.config.get("store") or "none: fresh views") for run in runs],
        "teacher": [run.teacher or "none" for run in runs if run.teacher] or ["none"],
    }


def _differing(
    runs: Sequence[RunRecord], summaries: Sequence[RunSummary], pinned: Mapping[str, list[str]]
) -> list[tuple[str, list[str]]]:
    """What beside the method may be the reason of a difference, with its value in each run."""
    found = [(name, values) for name, values in pinned.items() if len(set(values)) > 1]
    found.append(("length", [summary.length for summary in summaries]))
    names = dict.fromkeys(name for run in runs for name in run.config if name not in FREE_ON_RESUME | _SHOWN)
    found += [(option_of(name), [str(run.config.get(name)) for run in runs]) for name in names]
    return [(name, values) for name, values in found if len(set(values)) > 1]


def _weak_teacher(summaries: Sequence[RunSummary], teacher: Mapping[str, Any] | None) -> list[str]:
    base = _baseline(summaries)
    if teacher is None or base is None or base.miou is None:
        return []
    return weak_teacher(teacher["miou"], base.miou)


def _dataset(run: RunRecord) -> str:
    images = f" ({run.scores['images']} images)" if run.scores else ""
    return f"{run.dataset}, scored on {run.config.get('eval_split') or 'nothing'}{images}"
