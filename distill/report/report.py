"""The report of a run: what it came to, as Markdown with figures beside it. comparison.py sets runs side by side.

    RUN/report.md  RUN/figures/{losses,miou,class_iou,samples}.png  RUN/samples/

A report is made from the files of the run's folder (runfolder.py), so it can be written again at any time. The
headline score is the last checkpoint's on the evaluation split: the best of several evaluations would be selected on
the very images that it is reported for.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcache.cache.errors import KDCacheError
from kdcache.cache.images.classes import ClassSet
from kdcache.cache.storage.urls import redact
from kdcache.distill.report.figures import draw_class_iou, draw_losses, draw_miou, draw_samples
from kdcache.distill.report.record import RunRecord, RunSummary, loss_terms
from kdcache.distill.report.sample_files import write_sample_files
from kdcache.distill.scoring.samples import SamplePrediction
from kdcache.distill.units import duration_text

REPORT = "report.md"
FIGURES = "figures"


def write_report(
    folder: str | Path,
    *,
    result: Mapping[str, Any] | None = None,
    samples: Sequence[SamplePrediction] = (),
    classes: ClassSet | None = None,
) -> Path:
    """Write the report of a run into its folder; returns the path of report.md.

    Args:
        result: what scores.json will hold, where it does not stand yet.
        samples: for the picture of predictions; without any, one drawn before stays.
        classes: names and colours for the samples.

    Raises:
        NotFoundError: the folder holds no run.
        KDCacheError: it cannot be written to.
    """
    run = RunRecord.read(Path(folder))
    if result is not None:
        run = replace(run, result=result)
    figures = make_figures(run.folder)
    if terms := run.terms():
        draw_losses(figures / "losses.png", [line["step"] for line in run.of_kind("train")], terms)
    if len((curve := run.curve()).steps) > 1:
        draw_miou(figures / "miou.png", [curve])
    if run.scores:
        iou = run.scores["iou"]
        draw_class_iou(figures / "class_iou.png", list(iou), {run.name: list(iou.values())})
    if samples and classes is not None:
        draw_samples(figures / "samples.png", samples, classes)
        write_sample_files(run.folder, samples, classes)
    parts = [
        f"# {run.name}",
        _headline(run),
        markdown_table(["", ""], [[name, value] for name, value in _facts(run).items() if value]),
        f"## To repeat it\n\n```sh\n{run.repeat_command()}\n```",
        figure(run.folder, "samples", "Sample predictions"),
        _class_table(run),
        figure(run.folder, "class_iou", "IoU by class, drawn"),
        figure(run.folder, "miou", "mIoU while training"),
        figure(run.folder, "losses", "Loss terms, weighted"),
        _gradient_norms(run),
        _profile(run),
        _environment(run),
    ]
    return write_parts(run.folder / REPORT, parts)


def make_figures(folder: Path) -> Path:
    """The folder of a report's figures. Raises KDCacheError where it cannot be made."""
    path = folder / FIGURES
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KDCacheError(f"cannot write to {folder}: {error.strerror}", hint="--out DIR") from None
    return path


def figure(folder: Path, name: str, title: str) -> str:
    """A section with a figure; empty where it was not drawn."""
    path = Path(FIGURES) / f"{name}.png"
    return f"## {title}\n\n![{title}]({path.as_posix()})" if (folder / path).is_file() else ""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *(line(row) for row in rows)])


def write_parts(path: Path, parts: Sequence[str]) -> Path:
    """Write the parts of a report that are not empty."""
    path.write_text("\n\n".join(part for part in parts if part) + "\n")
    return path


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def steps_text(summary: RunSummary) -> str:
    """Steps done, and of how many where the clock ended the run before."""
    return f"{summary.steps} of {summary.planned_steps}" if summary.ended_by_clock else str(summary.steps)


def _headline(run: RunRecord) -> str:
    summary, scores = run.summary(), run.scores
    if run.result is None:
        return "Not finished: no scores yet."
    said = "No scores: there was no split to evaluate on."
    if scores:
        said = (
            f"**mIoU {percent(summary.miou)} %**, pixel accuracy {percent(summary.pixel_accuracy)} %, on "
            f"{scores['images']} images of {run.dataset} {run.config.get('eval_split', '')}, of the last checkpoint "
            f"(step {summary.steps})."
        )
    if summary.ended_by_clock:
        said += (
            f"\n\n**The time was up at step {summary.steps} of {summary.planned_steps}**: steps took longer than the "
            "first ones, and the learning rate did not come to its end."
        )
    return said


def _facts(run: RunRecord) -> dict[str, str | None]:
    config, summary = run.config, run.summary()
    store = config.get("store")
    return {
        "method": summary.method,
        "teacher": run.teacher and f"{run.teacher}, targets from {summary.source}",
        "student": f"{summary.student}, backbone weights: {config.get('backbone_weights', '?')}",
        "dataset": f"{run.dataset} {run.inputs.get('dataset', {}).get('split', '')}".strip(),
        "store": redact(store) if store else None,
        "batch size": str(config.get("batch_size")),
        "asked for": summary.length,
        "steps": steps_text(summary),
        "training time": f"{duration_text(summary.training_s)} (evaluation and checkpoints not counted)",
        "time a step, median": f"{summary.step_s:.3g} s",
        "waiting for data": f"{100 * summary.wait_share:.1f} % of the training time",
    }


def _class_table(run: RunRecord) -> str:
    """IoU by class beside the class's share of the labelled pixels."""
    if not run.scores:
        return ""
    pixels = [sum(row) for row in run.scores["confusion"]]
    shares = [count / max(1, sum(pixels)) for count in pixels]
    rows = [
        [name, percent(iou), percent(share)]
        for (name, iou), share in zip(run.scores["iou"].items(), shares, strict=True)
    ]
    rows.append(["mean", percent(run.scores["miou"]), ""])
    return f"## IoU by class\n\n{markdown_table(['class', 'IoU %', 'of the pixels %'], rows)}"


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
    table = markdown_table(["term", "first", "median", "last"], rows)
    return f"## Gradient norms by loss term\n\nWeights are balanced where these are of one size.\n\n{table}"


def _profile(run: RunRecord) -> str:
    parts = run.profile()
    if not parts:
        return ""
    total = sum(parts.values())
    rows = [[words, f"{seconds:.3g}", percent(seconds / total)] for words, seconds in parts.items()]
    return f"## Where a step's time goes\n\n{markdown_table(['part', 'seconds', '%'], rows)}"


def _environment(run: RunRecord) -> str:
    if not run.environment:
        return ""
    facts = {name: value for name, value in run.environment.items() if value is not None}
    packages = facts.pop("packages", {})
    facts["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    rows = [[name, str(value)] for name, value in facts.items() if value != ""]
    return f"## Environment\n\n{markdown_table(['', ''], rows)}"
