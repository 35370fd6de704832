"""The report of a study of a store: rate against error, and where the error lies.

OUT/fidelity.html  OUT/fidelity.md  OUT/fidelity.json  OUT/fidelity.csv  OUT/figures/{rates-logits.svg,...,maps.png}
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from kdcache.cache.codecs.fidelity import LOGIT_TARGETS, pixel_kl
from kdcache.cache.codecs.rate_distortion import RatePoint
from kdcache.cache.errors import KDCacheError
from kdcache.cache.images.classes import ClassSet
from kdcache.cache.images.sheet import colour_classes, draw_grid, legend_of
from kdcache.distill.report.charts import Line, LineChart, Point
from kdcache.distill.report.markdown import FIGURES
from kdcache.distill.report.model import (
    Block,
    Column,
    Figure,
    Gallery,
    Paragraph,
    Picture,
    Report,
    Section,
    Table,
    percent,
)
from kdcache.distill.report.styles import STAR, give_styles
from kdcache.distill.study.fidelity import Study, StudyEntry

NAME = "fidelity"
MAP_ROWS = 6

LEAST_ERROR = 1e-12  # a logarithmic axis shows nothing below

_CHANGED_RGB = (213, 94, 0)
_SAME_RGB = (235, 235, 235)


def make_report(study: Study, classes: ClassSet, title: str, maps: Path | None = None) -> Report:
    """What was found. `maps` is the picture that draw_maps gave, if there is one."""
    table = study_table(study)
    rates = [_rate_figure(target, study.fidelity[target], points) for target, points in study.rates.items()]
    pictures: list[Block] = []
    if maps is not None:
        alt = "Crops, the teacher's classes, the stored ones, where they differ, and the KL divergence"
        pictures = [Gallery(rows=[("Entries", [Picture(name="maps", alt=alt, path=maps)])], wide=True)]
    return Report(
        title=f"Fidelity of {title}",
        lead=[],
        about=f"{len(study.entries)} entries, against the teacher in float32. KL is in nats, relative error is squared and of "
        "the values' variance, borders are cells with another class next to them. Padding is left out.",
        cautions=study_cautions(study),
        sections=[
            Section("What the store kept", [table, *map(_paragraph, study_notes(study))], brief=True),
            Section(
                "Rate against error",
                [*rates, *(_rate_table(target, points) for target, points in study.rates.items())],
            ),
            Section("Where the logits lost something", pictures),
            Section(
                "Same class",
                [_class_table(t, f, classes) for t, f in study.fidelity.items() if t in LOGIT_TARGETS],
            ),
        ],
        data=study.to_dict(),
        sheet=table,
    )


def write_study(study: Study, classes: ClassSet, out: str | Path, title: str) -> Path:
    """Write a study's report into a folder; returns the path of fidelity.md. Raises KDCacheError for a folder that takes no files."""
    from kdcache.distill.report.write import write_files  # takes matplotlib along

    out, maps = Path(out), None
    if "logits" in study.fidelity:
        maps = out / FIGURES / "maps.png"
        try:
            maps.parent.mkdir(parents=True, exist_ok=True)
            draw_maps(study.entries[:MAP_ROWS], classes).save(maps)
        except OSError as error:
            raise KDCacheError(f"cannot write to {out}: {error.strerror}", hint="--out DIR") from None
    return write_files(make_report(study, classes, title, maps), out, name=NAME)


def study_table(study: Study) -> Table:
    """A target a row."""
    columns = [
        Column("target"),
        Column("codec"),
        Column("bytes a value", "rate", key="bytes_per_value"),
        Column("KL", "small", key="kl"),
        Column("KL at T=4", "small", key="kl_t4"),
        Column("same class %", "percent", key="agreement"),
        Column("at borders %", "percent", key="boundary_agreement"),
        Column("relative error", "small", key="relative_error"),
    ]
    rows = [
        [target, _codec_text(found), *(found.get(column.key) for column in columns[2:])]
        for target, found in study.fidelity.items()
    ]
    return Table.of("fidelity", "What the store kept of each target", columns, rows)


def study_notes(study: Study) -> list[str]:
    """What a table has no column for, a sentence each."""
    notes = []
    if study.teacher_miou is not None:
        exact, stored = (percent(study.teacher_miou[name]) for name in ("exact", "stored"))
        notes.append(
            f"The teacher's mIoU on these crops: {exact} % exact, {stored} % from the stored logits."
        )
    for target, found in study.fidelity.items():
        if "divergence" in found:
            seen = ", ".join(f"{name} {value:.1e}" for name, value in found["divergence"].items())
            notes.append(f"{target}, as methods see it: {seen}.")
    if study.gradient_cosine is not None:
        cosines = ", ".join(f"{name} {cosine:.5f}" for name, cosine in study.gradient_cosine.items())
        notes.append(f"The cosine of the student's gradients, exact against stored: {cosines}.")
    return notes


def study_cautions(study: Study) -> list[str]:
    if study.gradient_cosine is None:
        return ["Gradients were not compared: --student RUN names a half-trained student."]
    return []


def draw_maps(entries: Sequence[StudyEntry], classes: ClassSet) -> Any:
    """A picture, an entry a row: crop, the teacher's classes, those stored, where they differ, and the KL divergence."""
    columns: dict[str, list[npt.NDArray[Any] | None]] = {"crop": [entry.crop.image for entry in entries]}
    exact, stored = ([_classes(getattr(e, name)["logits"]) for e in entries] for name in ("exact", "stored"))
    kl = [pixel_kl(e.exact["logits"], e.stored["logits"])[0].numpy() for e in entries]
    columns["teacher"] = [colour_classes(ids, classes) for ids in exact]
    columns["stored"] = [colour_classes(ids, classes) for ids in stored]
    columns["another class"] = [_differing(a, b) for a, b in zip(exact, stored, strict=True)]
    columns["KL (black 1e-5, white 1e-1)"] = [_heat(cells) for cells in kl]
    present = {int(i) for ids in (*exact, *stored) for i in np.unique(ids)}
    return draw_grid(
        columns,
        captions=[f"{entry.image_id}, view {entry.view_index}" for entry in entries],
        legend=legend_of(present, classes),
    )


def _codec_text(found: Mapping[str, Any]) -> str:
    codec = found["codec"]
    return str(codec["name"]) + (f":{codec['step']:g}" if "step" in codec else "")


def _paragraph(text: str) -> Paragraph:
    return Paragraph(text)


def _rate_figure(target: str, own: Mapping[str, Any], points: Sequence[RatePoint]) -> Figure:
    """The KL divergence where there is one, else the relative error; further down and to the left is better."""
    key, name = ("kl", "KL divergence") if own.get("kl") is not None else ("relative_error", "relative error")
    curves: dict[str, list[Point]] = {}
    for point in points:
        if point.fidelity[key] > 0:
            place = (float(point.fidelity["bytes_per_value"]), float(point.fidelity[key]))
            curves.setdefault(point.codec.name, []).append(place)
    styles = give_styles(list(curves))
    lines = [
        Line(name=codec, style=styles[codec], strokes=[sorted(found)]) for codec, found in curves.items()
    ]
    here = (float(own["bytes_per_value"]), max(float(own[key]), LEAST_ERROR))
    lines.append(Line(name=f"this store: {own['codec']['name']}", style=STAR, strokes=[[here]]))
    return Figure(
        name=f"rates-{target}",
        title=f"Codecs for {target}",
        caption="A line for each codec, from fine to coarse; the star is this store. Further down and left is better.",
        chart=LineChart(lines=lines, x_title="bytes a value", y_title=name, log_x=True, log_y=True),
        alt=f"{name} over bytes a value; this store: {here[1]:.1e} at {here[0]:.4f} bytes",
    )


def _rate_table(target: str, points: Sequence[RatePoint]) -> Table:
    columns = [
        Column("codec"),
        Column("bytes a value", "rate", key="bytes_per_value"),
        Column("KL", "small", key="kl"),
        Column("same class %", "percent", key="agreement"),
        Column("relative error", "small", key="relative_error"),
    ]
    rows = [[point.request, *(point.fidelity.get(column.key) for column in columns[1:])] for point in points]
    return Table.of(f"rates-{target}", f"Codecs for {target}", columns, rows)


def _class_table(target: str, found: Mapping[str, Any], classes: ClassSet) -> Table:
    columns = [Column("class"), Column("same class %", "percent", key="agreement")]
    rows = list(zip(classes.names, found["class_agreement"], strict=True))
    return Table.of(f"classes-{target}", f"Cells of the same class as the teacher's, {target}", columns, rows)


def _classes(logits: Tensor) -> npt.NDArray[Any]:
    """(h, w) ids."""
    ids: npt.NDArray[Any] = logits.argmax(dim=1)[0].numpy()
    return ids


def _differing(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    picture = np.full((*one.shape, 3), _SAME_RGB, np.uint8)
    picture[one != other] = _CHANGED_RGB
    return picture


def _heat(cells: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Grey by the logarithm, (h, w, 3)."""
    share = (np.log10(np.maximum(cells, 1e-9)) + 5) / 4
    grey = (share.clip(0, 1) * 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
