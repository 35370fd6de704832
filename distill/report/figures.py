"""Figures of reports, as PNG files: losses, mIoU over steps and over time, IoU by class, sample predictions; rates.

Drawn on matplotlib's Agg canvas through `Figure` objects: no window, no pyplot, no state left behind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from kdcache.cache.images.classes import ClassSet
from kdcache.cache.images.sheet import colour_classes, draw_grid, legend_of
from kdcache.distill.scoring.samples import SamplePrediction

DPI = 130
SMOOTHED_POINTS = 50  # about as many independent points as a curve shows after smoothing
TIME_UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7F7F7F",
    "#000000",
)  # Okabe and Ito: told apart by colour-blind readers too
MARKERS = "osD^vPX*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The evaluations of one run."""

    name: str
    steps: Sequence[int]
    seconds: Sequence[float]  # of training alone
    miou: Sequence[float]  # fractions


def draw_losses(path: Path, steps: Sequence[int], terms: Mapping[str, Sequence[float]]) -> None:
    """One panel a term, as it was and smoothed; the axis is logarithmic where a term spans a decade."""
    columns = min(2, len(terms))
    lines = -(-len(terms) // columns)
    figure = _figure(5.2 * columns, 2.6 * lines + 0.3)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for axis, (name, values), colour in zip(axes.flat, terms.items(), _cycle(len(terms)), strict=False):
        axis.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
        axis.plot(steps, smooth(values), color=colour, linewidth=1.8)
        positive = [v for v in values if v > 0]
        if len(positive) == len(values) and max(positive) > 10 * min(positive):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(name)
        _tidy(axis)
    for axis in list(axes.flat)[len(terms) :]:
        axis.set_visible(False)
    for axis in list(axes.flat)[max(0, len(terms) - columns) : len(terms)]:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("step")
    _save(figure, path)


def draw_miou(path: Path, curves: Sequence[Curve], teacher_miou: float | None = None) -> None:
    """mIoU over steps and over time of training, one line a run; the teacher's as a dashed line."""
    figure = _figure(10.4, 3.9)
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    longest = max((seconds for curve in curves for seconds in curve.seconds), default=0.0)
    unit, unit_s = next((name, s) for name, s in TIME_UNITS.items() if longest >= 2 * s or s == 1)
    for index, curve in enumerate(curves):
        percent = [100 * value for value in curve.miou]
        look = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        style = {**look, "markersize": 5.0, "linewidth": 1.6, "label": curve.name}
        by_step.plot(curve.steps, percent, **style)
        by_time.plot([seconds / unit_s for seconds in curve.seconds], percent, **style)
    for axis, name in ((by_step, "steps"), (by_time, f"{unit} of training")):
        if teacher_miou is not None:
            axis.axhline(100 * teacher_miou, color="#444444", linestyle="--", linewidth=1.2, label="teacher")
        axis.set_xlabel(name)
        _tidy(axis)
    by_step.set_ylabel("mIoU, %")
    if len(curves) > 1 or teacher_miou is not None:
        handles, names = by_step.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
    _save(figure, path)


def draw_class_iou(
    path: Path, class_names: Sequence[str], runs: Mapping[str, Sequence[float | None]]
) -> None:
    """IoU by class in percent: one bar a class, or one marker a run, each on a line of its own, for several."""
    figure = _figure(7.4, 1.1 + (0.26 + 0.07 * (len(runs) - 1)) * len(class_names) + 0.25 * (len(runs) > 1))
    axis = figure.subplots()
    places = np.arange(len(class_names))
    for index, (name, iou) in enumerate(runs.items()):
        percent = [float("nan") if value is None else 100 * value for value in iou]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        if len(runs) > 1:
            beside = 0.7 * ((index + 0.5) / len(runs) - 0.5)
            axis.plot(
                percent, places + beside, marker, color=colour, markersize=4.5, label=name, clip_on=False
            )
            continue
        axis.barh(places, np.nan_to_num(percent), color=colour, height=0.72)
        for place, value in zip(places, percent, strict=True):
            text = "not present" if np.isnan(value) else f"{value:.1f}"
            axis.text(
                float(np.nan_to_num(value)) + 1, float(place), text, va="center", fontsize=8, color="#444444"
            )
    axis.set_yticks(places, class_names)
    axis.set_ylim(len(class_names) - 0.4, -0.6)
    axis.set_xlim(0, 108)
    axis.set_xticks(range(0, 101, 20))
    axis.set_xlabel("IoU, %")
    _tidy(axis)
    if len(runs) > 1:
        figure.legend(loc="outside upper center", ncols=min(4, len(runs)), frameon=False)
    _save(figure, path)


def draw_samples(path: Path, samples: Sequence[SamplePrediction], classes: ClassSet) -> None:
    """A row an image: image, label, prediction; the classes' colours below."""
    columns: dict[str, list[npt.NDArray[Any] | None]] = {"image": [s.image for s in samples]}
    present: set[int] = set()
    for sample in samples:
        present.update(np.unique(sample.prediction).tolist())
    labels = [s.label for s in samples]
    if any(label is not None for label in labels):
        present.update(*(np.unique(label).tolist() for label in labels if label is not None))
        columns["label"] = [None if label is None else colour_classes(label, classes) for label in labels]
    columns["prediction"] = [colour_classes(s.prediction, classes) for s in samples]
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = draw_grid(columns, captions=[s.image_id for s in samples], legend=legend_of(present, classes))
    grid.save(path)


def draw_rates(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],  # by codec: (bytes a value, error), fine to coarse
    chosen: tuple[str, float, float],  # what the store has: its name, bytes a value, error
    error_name: str,
) -> None:
    """Error over bytes, one line a codec, and the store's own as a star; further down and to the left is better."""
    figure = _figure(7.4, 4.6)
    axis = figure.subplots()
    for index, (name, points) in enumerate(curves.items()):
        shown = [(rate, error) for rate, error in points if error > 0]
        axis.plot(
            [rate for rate, _ in shown],
            [error for _, error in shown],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4.5,
            linewidth=1.4,
            label=name,
        )
    name, rate, error = chosen
    axis.plot([rate], [max(error, 1e-12)], "*", color="#000000", markersize=14, label=f"this store: {name}")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("bytes a value")
    axis.set_ylabel(error_name)
    axis.legend(frameon=False, fontsize=8)
    _tidy(axis)
    _save(figure, path)


def smooth(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Centred running mean over about 1/50 of the curve, shorter at its ends."""
    half = max(0, len(values) // SMOOTHED_POINTS // 2)
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    means: npt.NDArray[np.float64] = (total[high] - total[low]) / (high - low)
    return means


def _figure(width_in: float, height_in: float) -> Figure:
    return Figure(figsize=(width_in, height_in), layout="constrained")


def _tidy(axis: Axes) -> None:
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
