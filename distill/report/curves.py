"""Curves over a run as figures: mIoU over steps or over time, and loss terms."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kdcache.distill.report.charts import PERCENT, Limit, Line, LineChart, Point, is_near
from kdcache.distill.report.model import Figure
from kdcache.distill.report.record import Curve
from kdcache.distill.report.styles import Style, style_of

EARLY_SHARE = 2.0  # of the stretch of the ends: of several curves, what lies further below them is left out
EARLY_LEAST = 4.0  # points below the ends that are always shown
SMOOTHED_POINTS = 50  # about as many independent points as a curve shows after smoothing
TIME_UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}


def miou_figures(
    curves: Mapping[str, Sequence[Curve]], styles: Mapping[str, Style], limits: Sequence[Limit], clock: str
) -> list[Figure]:
    """mIoU over a clock, "time" of training or "steps": for each name its runs. [] if no run has two evaluations."""
    timed = clock == "time"
    strokes = {name: [_stroke(curve, timed) for curve in of if curve.steps] for name, of in curves.items()}
    strokes = {name: of for name, of in strokes.items() if of}
    if all(len(stroke) < 2 for of in strokes.values() for stroke in of):
        return []
    ends = [stroke[-1] for of in strokes.values() for stroke in of]
    unit, unit_s = _time_unit(max(at for at, _ in ends)) if timed else ("steps", 1)
    finals = [miou for _, miou in ends]
    near = [limit.at for limit in limits if is_near(limit.at, finals)]
    depth = max(EARLY_SHARE * (max([*finals, *near]) - min(finals)), EARLY_LEAST)
    floor = min(finals) - depth if len(ends) > 1 else 0.0
    lines = [
        Line(name=name, style=styles[name], strokes=[_above(stroke, floor, unit_s) for stroke in of])
        for name, of in strokes.items()
    ]
    notes = {
        "A line for each seed.": any(len(of) > 1 for of in strokes.values()),
        "Time is of training alone.": timed,
        "Earlier values lie below the axis.": any(
            miou < floor for of in strokes.values() for stroke in of for _, miou in stroke[:-1]
        ),
    }
    x_title = f"{unit} of training" if timed else "steps"
    return [
        Figure(
            name=f"miou-{clock}",
            title=f"mIoU over {clock}",
            caption=" ".join(note for note, holds in notes.items() if holds) or "Every evaluation.",
            chart=LineChart(lines=lines, x_title=x_title, y_title="mIoU, %", limits=limits, bounds=PERCENT),
            alt="; ".join(
                f"{line.name}: {line.strokes[0][-1][1]:.2f} % after {line.strokes[0][-1][0]:.4g} {x_title}"
                for line in lines
            ),
        )
    ]


def loss_figures(steps: Sequence[int], terms: Mapping[str, Sequence[float]]) -> list[Figure]:
    """All terms, as they were and smoothed; on a logarithmic axis if they span a decade."""
    if len(steps) < 2:
        return []
    lines = [
        Line(
            name=name,
            style=style_of(index),
            strokes=[list(zip(map(float, steps), smooth(values).tolist(), strict=True))],
            raw=list(zip(map(float, steps), values, strict=True)),
        )
        for index, (name, values) in enumerate(terms.items())
    ]
    all_values = [value for values in terms.values() for value in values]
    logarithmic = min(all_values) > 0 and max(all_values) > 10 * min(all_values)
    return [
        Figure(
            name="losses",
            title="Loss terms",
            caption="Weighted, as they add up to the loss; smoothed, with the values behind.",
            chart=LineChart(lines=lines, x_title="steps", y_title="loss", log_y=logarithmic),
            alt="; ".join(f"{name}: from {of[0]:.3g} to {of[-1]:.3g}" for name, of in terms.items()),
        )
    ]


def smooth(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Centred running mean over about 1/50 of the curve, shorter at its ends."""
    half = max(0, len(values) // SMOOTHED_POINTS // 2)
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    means: npt.NDArray[np.float64] = (total[high] - total[low]) / (high - low)
    return means


def _stroke(curve: Curve, timed: bool) -> list[Point]:
    across = curve.seconds if timed else curve.steps
    return [(float(at), 100 * miou) for at, miou in zip(across, curve.miou, strict=True)]


def _above(stroke: Sequence[Point], floor: float, unit: float) -> list[Point]:
    """The points of a stroke that are not below a floor, and its end."""
    return [(at / unit, miou) for at, miou in stroke if miou >= floor or at == stroke[-1][0]]


def _time_unit(longest_s: float) -> tuple[str, int]:
    """The unit in which a time reads well, and its seconds."""
    return next((name, s) for name, s in TIME_UNITS.items() if longest_s >= 2 * s or s == 1)
