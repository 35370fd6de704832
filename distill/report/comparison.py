"""Several runs side by side: a table, their curves, and in what else than the method they differ.

OUT/report.md  OUT/figures/{miou,class_iou}.png
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.cache.storage.urls import redact
from kdcache.distill.config import FREE_ON_RESUME, option_of
from kdcache.distill.report.figures import draw_class_iou, draw_miou
from kdcache.distill.report.record import RunRecord, RunSummary, read_runs
from kdcache.distill.report.report import (
    REPORT,
    figure,
    make_figures,
    markdown_table,
    percent,
    steps_text,
    write_parts,
)
from kdcache.distill.units import duration_text

CLOSE_MIOU = 0.02
"""A teacher that is not this much better than the run without one has little to give."""

# Settings that have a column of their own, or that are looked at through what the run was pinned to.
_SHOWN = frozenset({"method", "source", "steps", "epochs", "budget_seconds", "dataset", "split", "teacher"})


def write_comparison(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    teacher: Mapping[str, Any] | None = None,
) -> Path:
    """Compare runs in a report of their own under `out`; returns the path of report.md.

    Args:
        teacher: its scores where they are known, with "name", "miou" and "pixel_accuracy".

    Raises:
        NotFoundError: a folder holds no run.
        KDCacheError: `out` cannot be written to.
    """
    runs, out = read_runs(folders), Path(out)
    figures = make_figures(out)
    if curves := [curve for run in runs if (curve := run.curve()).steps]:
        draw_miou(figures / "miou.png", curves, None if teacher is None else teacher["miou"])
    if scored := {run.name: run.scores["iou"] for run in runs if run.scores}:
        names = list(dict.fromkeys(name for iou in scored.values() for name in iou))
        by_run = {run: [iou.get(name) for name in names] for run, iou in scored.items()}
        draw_class_iou(figures / "class_iou.png", names, by_run)
    summaries = [run.summary() for run in runs]
    parts = [
        "# Comparison",
        markdown_table(*comparison_table(summaries, teacher)),
        "Scores are of the last checkpoint. Training time leaves out start-up, evaluation and checkpoints.",
        "\n".join(f"- {note}" for note in _notes(runs, summaries, teacher)),
        figure(out, "miou", "mIoU while training"),
        figure(out, "class_iou", "IoU by class"),
        "## Runs",
        "\n".join(f"- [{run.name}]({os.path.relpath(run.folder / REPORT, out)})" for run in runs),
    ]
    return write_parts(out / REPORT, parts)


def compare_runs(folders: Sequence[str | Path]) -> list[RunSummary]:
    """One summary a run, in the order given.

    Raises:
        NotFoundError: a folder holds no run.
    """
    return [run.summary() for run in read_runs(folders)]


def comparison_table(
    summaries: Sequence[RunSummary], teacher: Mapping[str, Any] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a comparison as text; `vs none` is against the first run without a teacher."""
    baseline = _baseline(summaries)
    header = [
        *("run", "method", "source", "asked for", "steps", "training", "s/step", "waiting"),
        *("mIoU %", "vs none", "pixel acc. %"),
    ]
    rows = [
        [
            summary.name + ("" if summary.complete else " (unfinished)"),
            summary.method,
            summary.source,
            summary.length,
            steps_text(summary),
            duration_text(summary.training_s),
            f"{summary.step_s:.3g}",
            f"{100 * summary.wait_share:.1f} %",
            percent(summary.miou),
            "" if baseline is None or summary.miou is None else f"{100 * (summary.miou - baseline):+.2f}",
            percent(summary.pixel_accuracy),
        ]
        for summary in summaries
    ]
    if teacher is not None:
        gain = "" if baseline is None else f"{100 * (teacher['miou'] - baseline):+.2f}"
        scores = [percent(teacher["miou"]), gain, percent(teacher.get("pixel_accuracy"))]
        rows.append([str(teacher.get("name", "teacher")), "(teacher)", *[""] * 6, *scores])
    return header, rows


def _baseline(summaries: Sequence[RunSummary]) -> float | None:
    return next((s.miou for s in summaries if s.method == "none" and s.miou is not None), None)


def _notes(
    runs: Sequence[RunRecord], summaries: Sequence[RunSummary], teacher: Mapping[str, Any] | None
) -> list[str]:
    """What the runs have in common, and what beside the method may be the reason of a difference."""
    pinned = {
        "dataset": [_dataset(run) for run in runs],
        "store": [redact(run.config.get("store") or "none: fresh views") for run in runs],
        "teacher": [run.teacher or "none" for run in runs if run.teacher] or ["none"],
    }
    notes = [f"{name}: {values[0]}" for name, values in pinned.items() if len(set(values)) == 1]
    differing = {name: values for name, values in pinned.items() if len(set(values)) > 1}
    if len({summary.length for summary in summaries}) > 1:
        differing["length"] = [summary.length for summary in summaries]
    names = dict.fromkeys(name for run in runs for name in run.config if name not in FREE_ON_RESUME | _SHOWN)
    for name in names:
        values = [str(run.config.get(name)) for run in runs]
        if len(set(values)) > 1:
            differing[option_of(name)] = values
    notes += [f"**differs: {name}**: {', '.join(values)}" for name, values in differing.items()]
    notes += [
        f"{summary.name}: the time was up at step {summary.steps} of {summary.planned_steps}, before the learning rate "
        "was at its end"
        for summary in summaries
        if summary.ended_by_clock
    ]
    baseline = _baseline(summaries)
    if teacher is not None and baseline is not None and teacher["miou"] - baseline < CLOSE_MIOU:
        notes.append(
            f"the teacher is less than {100 * CLOSE_MIOU:.0f} points above the run without one: "
            "this comparison says little about distillation"
        )
    return notes


def _dataset(run: RunRecord) -> str:
    images = f" ({run.scores['images']} images)" if run.scores else ""
    return f"{run.dataset}, scored on {run.config.get('eval_split') or 'nothing'}{images}"
