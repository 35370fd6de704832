"""The report of one run: its score, its curves, and where its time went.

    RUN/report.html  RUN/report.md  RUN/report.json  RUN/figures/{miou-steps,miou-time,losses}.svg  RUN/samples/

A report is made from the files of the run's folder (runfolder.py), so you can write it again at any time. The headline is
the score of the last checkpoint on the evaluation split: the best of several evaluations would be selected on the very
images that it is reported for.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcache.cache.images.classes import ClassSet
from kdcache.cache.storage.urls import redact
from kdcache.distill.report.curves import loss_figures, miou_figures
from kdcache.distill.report.model import (
    Block,
    Cell,
    Code,
    Column,
    Facts,
    Figure,
    Gallery,
    Report,
    Section,
    Table,
    percent,
)
from kdcache.distill.report.record import RunRecord, RunSummary, loss_terms
from kdcache.distill.report.sample_files import SampleFiles, write_sample_files
from kdcache.distill.report.styles import style_of
from kdcache.distill.report.write import write_files
from kdcache.distill.scoring.samples import SamplePrediction
from kdcache.distill.units import duration_text, size_text


def write_report(
    folder: str | Path,
    *,
    result: Mapping[str, Any] | None = None,
    samples: Sequence[SamplePrediction] = (),
    classes: ClassSet | None = None,
) -> Path:
    """Write the report of a run into its folder; returns the path of report.md.

    Args:
        result: what scores.json will contain, if it is not written yet.
        samples: predictions to show; without any, those of an earlier report stay.
        classes: names and colours for the samples.

    Raises:
        NotFoundError: the folder contains no run.
        KDCacheError: writing to the folder fails.
    """
    run = RunRecord.read(Path(folder))
    if result is not None:
        run = replace(run, result=result)
    if samples and classes is not None:
        write_sample_files(run.folder, samples, classes)
    return write_files(run_report(run), run.folder)


def run_report(run: RunRecord) -> Report:
    """What the files of a run say. Raises UsageError if the index of its samples is damaged."""
    summary = run.summary()
    return Report(
        title=run.name,
        lead=_lead(run, summary),
        cautions=list(run_cautions(summary)),
        facts=Facts(_facts(run, summary)),
        sections=[
            Section("To repeat it", [Code([run.repeat_command()])]),
            Section("Sample predictions", _samples(run)),
            Section("IoU by class", _classes(run)),
            Section("While training", _curves(run)),
            Section("Gradient norms by loss term", _gradient_norms(run)),
            Section("Where a step's time goes", _profile(run)),
            Section("Environment", _environment(run)),
        ],
        data={"runs": [summary.to_dict()]},
    )


def run_cautions(summary: RunSummary) -> list[str]:
    """What keeps the score of one run from meaning what it seems to."""
    if not summary.ended_by_clock:
        return []
    caution = (
        f"{summary.name}: the time was up at step {summary.steps} of {summary.planned_steps}, because steps took longer "
        "than the first ones. The learning rate did not reach its last value."
    )
    return [caution]


def steps_text(summary: RunSummary) -> str:
    """Steps done, and of how many if the clock ended the run earlier."""
    return f"{summary.steps} of {summary.planned_steps}" if summary.ended_by_clock else str(summary.steps)


def _lead(run: RunRecord, summary: RunSummary) -> list[str]:
    if run.result is None:
        return ["Not finished: no scores yet."]
    if not run.scores:
        return ["No scores: the run had no split to evaluate on."]
    headline = (
        f"mIoU {percent(summary.miou)} %, pixel accuracy {percent(summary.pixel_accuracy)} %, on "
        f"{run.scores['images']} images of {run.dataset} {run.config.get('eval_split', '')}, of the last checkpoint "
        f"(step {summary.steps})."
    )
    return [headline]


def _facts(run: RunRecord, summary: RunSummary) -> list[tuple[str, str | None]]:
    config = run.config
    store = config.get("store")
    return [
        ("method", summary.method),
        ("teacher", run.teacher and f"{run.teacher}, targets from {summary.source}"),
        ("student", f"{summary.student}, backbone weights: {config.get('backbone_weights', '?')}"),
        ("dataset", f"{run.dataset} {run.inputs.get('dataset', {}).get('split', '')}".strip()),
        ("store", redact(store) if store else None),
        ("batch size", str(config.get("batch_size"))),
        ("asked for", summary.length),
        ("steps", steps_text(summary)),
        ("training time", f"{duration_text(summary.training_s)} (evaluation and checkpoints not counted)"),
        ("time a step, median", f"{summary.step_s:.3g} s"),
        ("waiting for data", f"{100 * summary.wait_share:.1f} % of the training time"),
    ]


def _samples(run: RunRecord) -> list[Block]:
    found = SampleFiles.read(run.folder)
    if found is None:
        return []
    rows = [
        (image, [each for name in ("image", "label", "prediction") if (each := found.picture(index, name))])
        for index, image in enumerate(found.images)
    ]
    return [Gallery(rows=rows, legend=found.legend)]


def _classes(run: RunRecord) -> list[Block]:
    """IoU by class beside the class's share of the labelled pixels."""
    if not run.scores:
        return []
    pixels = [sum(row) for row in run.scores["confusion"]]
    shares = [count / max(1, sum(pixels)) for count in pixels]
    rows: list[list[Any]] = [
        [name, Cell(iou, share=iou), share]
        for (name, iou), share in zip(run.scores["iou"].items(), shares, strict=True)
    ]
    rows.append(["mean", Cell(run.scores["miou"], share=run.scores["miou"]), None])
    columns = [
        Column("class"),
        Column("IoU %", "percent", key="iou"),
        Column("of the pixels %", "percent", key="pixels"),
    ]
    return [Table.of("classes", "In percent, beside the class's share of the labelled pixels", columns, rows)]


def _curves(run: RunRecord) -> list[Figure]:
    curves, styles = {run.name: [run.curve()]}, {run.name: style_of(0)}
    over = [figure for clock in ("steps", "time") for figure in miou_figures(curves, styles, [], clock)]
    return [*over, *loss_figures([line["step"] for line in run.of_kind("train")], run.terms())]


def _gradient_norms(run: RunRecord) -> list[Block]:
    """What was measured once is shown once, twice as first and last, and more often with the median between."""
    lines = run.of_kind("gradnorm")
    if not lines:
        return []
    rows = []
    for name in loss_terms(lines[-1]):
        norms = [line[name] for line in lines if line.get(name) is not None]
        first, last = lines[0].get(name), lines[-1][name]
        rows.append([name, first, statistics.median(norms) if norms else None, last])
    shown = {1: ("at the only sample",), 2: ("first", "last")}.get(len(lines), ("first", "median", "last"))
    at = {1: (0, 3), 2: (0, 1, 3)}.get(len(lines), (0, 1, 2, 3))
    columns = [Column("term"), *(Column(title, "number") for title in shown)]
    caption = "Weights are balanced where these are of one size"
    return [Table.of("gradient-norms", caption, columns, [[row[i] for i in at] for row in rows])]


def _profile(run: RunRecord) -> list[Block]:
    parts = run.profile()
    total = sum(parts.values())
    columns = [Column("part"), Column("seconds", "number"), Column("%", "percent", key="share")]
    rows = [[words, seconds, seconds / total] for words, seconds in parts.items()] if total else []
    return [Table.of("profile", "Seconds of a step by its parts", columns, rows)] if rows else []


def _environment(run: RunRecord) -> list[Block]:
    facts = [(name.replace("_", " "), _fact_text(name, value)) for name, value in run.environment.items()]
    return [Facts(facts)] if run.environment else []


def _fact_text(name: str, value: Any) -> str:
    """A value of the environment as people read it; "" for none."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        pairs = (
            (key, f"{each:g}" if isinstance(each, float) else each) for key, each in value.items() if each
        )
        return ", ".join(f"{key} {each}" for key, each in pairs)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return size_text(value) if name.endswith("_bytes") else str(value)
