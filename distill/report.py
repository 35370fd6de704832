"""Reports: what a run came to, and several runs side by side, as Markdown with figures beside it.

    RUN/report.md  RUN/figures/{losses,miou,class_iou,samples}.png

A report is made from the files of the run's folder (runfolder.py), so it can be written again at any time. The
headline score is the last checkpoint's on the evaluation split: the best of several evaluations would be selected on
the very images that it is reported for.
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcache.cache.classes import ClassSet
from kdcache.distill.config import FREE_ON_RESUME
from kdcache.distill.figures import draw_class_iou, draw_losses, draw_miou, draw_samples
from kdcache.distill.runrecord import RunRecord, RunSummary, loss_terms, read_runs
from kdcache.distill.samples import Sample

REPORT = "report.md"
FIGURES = "figures"

# What runs are compared by, and what follows from it.
_EXPECTED_TO_DIFFER = frozenset({"method", "source", "steps", "epochs", "budget_seconds", "fresh_views"}) | {
    "teacher",
    "teacher_precision",
}


def write_report(
    folder: str | Path,
    *,
    result: Mapping[str, Any] | None = None,
    samples: Sequence[Sample] = (),
    classes: ClassSet | None = None,
) -> Path:
    """Write the report of a run into its folder; returns the path of report.md.

    Args:
        result: what scores.json will hold, where it does not stand yet.
        samples: for the picture of predictions; without any, one drawn before stays.
        classes: names and colours for the samples.
    """
    run = RunRecord.read(Path(folder))
    if result is not None:
        run = replace(run, result=result)
    figures = run.folder / FIGURES
    if terms := run.terms():
        draw_losses(figures / "losses.png", [line["step"] for line in run.of_kind("train")], terms)
    if len((curve := run.curve()).steps) > 1:
        draw_miou(figures / "miou.png", [curve])
    if run.scores:
        draw_class_iou(
            figures / "class_iou.png", list(run.scores["iou"]), {run.name: list(run.scores["iou"].values())}
        )
    if samples and classes is not None:
        draw_samples(figures / "samples.png", samples, classes)
    return _write(run.folder / REPORT, _run_report(run))


def write_comparison(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    teacher: Mapping[str, Any] | None = None,
) -> Path:
    """Compare runs in a report of their own under `out`; returns the path of report.md.

    Args:
        teacher: its scores where they are known, with "name", "miou" and "pixel_accuracy".
    """
    runs, out = read_runs(folders), Path(out)
    curves = [curve for run in runs if (curve := run.curve()).steps]
    if curves:
        draw_miou(out / FIGURES / "miou.png", curves, None if teacher is None else teacher["miou"])
    scored = {run.name: run.scores["iou"] for run in runs if run.scores}
    if scored:
        names = list(dict.fromkeys(name for iou in scored.values() for name in iou))
        by_run = {run: [iou.get(name) for name in names] for run, iou in scored.items()}
        draw_class_iou(out / FIGURES / "class_iou.png", names, by_run)
    return _write(out / REPORT, _comparison(runs, out, teacher))


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
    baseline = next((s.miou for s in summaries if s.method == "none"), None)
    header = [
        "run",
        "method",
        "source",
        "steps",
        "training",
        "s/step",
        "waiting",
        "mIoU %",
        "vs none",
        "pixel acc. %",
    ]
    rows = [
        [
            summary.name + ("" if summary.complete else " (unfinished)"),
            summary.method,
            summary.source,
            str(summary.steps),
            duration(summary.training_s),
            f"{summary.step_s:.3g}",
            f"{100 * summary.wait_share:.1f} %",
            percent(summary.miou),
            "" if baseline is None or summary.miou is None else f"{100 * (summary.miou - baseline):+.2f}",
            percent(summary.pixel_accuracy),
        ]
        for summary in summaries
    ]
    if teacher is not None:
        scores = [percent(teacher["miou"]), "", percent(teacher.get("pixel_accuracy"))]
        rows.append([str(teacher.get("name", "teacher")), "teacher", "", "", "", "", "", *scores])
    return header, rows


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def duration(seconds: float) -> str:
    """As in "1 h 05 min", "3 min 20 s" or "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _run_report(run: RunRecord) -> str:
    config, summary = run.config, run.summary()
    scores = run.scores
    where = f"{config.get('dataset') or 'the dataset'} {config.get('eval_split', '')}".strip()
    if scores:
        headline = (
            f"**mIoU {percent(summary.miou)} %**, pixel accuracy {percent(summary.pixel_accuracy)} %, on "
            f"{scores['images']} images of {where}, of the last checkpoint (step {summary.steps})."
        )
    else:
        headline = "No scores: the run is not finished, or there was no split to evaluate on."
    facts = {
        "method": f"{summary.method}, targets: {summary.source}",
        "student": f"{summary.student}, backbone weights: {config.get('backbone_weights', '?')}",
        "store": config.get("store") or None,
        "teacher": config.get("teacher") or None,
        "batch size": config.get("batch_size"),
        "steps": summary.steps,
        "training time": f"{duration(summary.training_s)} (evaluation and checkpoints not counted)",
        "time a step, median": f"{summary.step_s:.3g} s, {100 * summary.wait_share:.1f} % of it waiting for data",
        "device": _device(run.environment),
    }
    parts = [
        f"# {run.name}",
        headline,
        _markdown_table(["", ""], [[key, str(value)] for key, value in facts.items() if value is not None]),
        _figure(run.folder, "samples", "Sample predictions"),
        _figure(run.folder, "class_iou", "IoU by class"),
        _figure(run.folder, "miou", "mIoU while training"),
        _figure(run.folder, "losses", "Loss terms, weighted"),
        _gradient_norms(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _comparison(runs: Sequence[RunRecord], out: Path, teacher: Mapping[str, Any] | None) -> str:
    header, rows = comparison_table([run.summary() for run in runs], teacher)
    links = [f"- [{run.name}]({os.path.relpath(run.folder / REPORT, out)})" for run in runs]
    parts = [
        "# Comparison",
        _markdown_table(header, rows),
        "Scores are of the last checkpoint. Training time leaves out start-up, evaluation and checkpoints.",
        _differences(runs),
        _figure(out, "miou", "mIoU while training"),
        _figure(out, "class_iou", "IoU by class"),
        "## Runs",
        "\n".join(links),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _differences(runs: Sequence[RunRecord]) -> str:
    """Settings beside the method that differ: they may be what a comparison really shows."""
    ignored = FREE_ON_RESUME | _EXPECTED_TO_DIFFER
    fields = dict.fromkeys(name for run in runs for name in run.config if name not in ignored)
    lines = [
        f"- {name}: {', '.join(str(run.config.get(name)) for run in runs)}"
        for name in fields
        if any(run.config.get(name) != runs[0].config.get(name) for run in runs)
    ]
    return "These runs also differ in:\n\n" + "\n".join(lines) if lines else ""


def _gradient_norms(run: RunRecord) -> str:
    lines = run.of_kind("gradnorm")
    if not lines:
        return ""
    names = loss_terms(lines[-1])
    median = [statistics.median(line[name] for line in lines if name in line) for name in names]
    rows = [
        [name, f"{lines[0].get(name, 0.0):.3g}", f"{middle:.3g}", f"{lines[-1][name]:.3g}"]
        for name, middle in zip(names, median, strict=True)
    ]
    table = _markdown_table(["term", "first", "median", "last"], rows)
    return f"## Gradient norms by loss term\n\nWeights are balanced where these are of one size.\n\n{table}"


def _figure(folder: Path, name: str, title: str) -> str:
    path = Path(FIGURES) / f"{name}.png"
    return f"## {title}\n\n![{title}]({path.as_posix()})" if (folder / path).is_file() else ""


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *(line(row) for row in rows)])


def _device(environment: Mapping[str, Any]) -> str | None:
    if not environment:
        return None
    processes = environment.get("processes", 1)
    return f"{environment.get('device', '?')}, {processes} process{'es' if processes != 1 else ''}"


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
