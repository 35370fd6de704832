"""A study of a store as a table, as Markdown and as pictures: rate against error, and where the error lies.

OUT/fidelity.md  OUT/fidelity.json  OUT/figures/{rates-logits,rates-features,...,maps}.png
"""

import json
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
from kdcache.distill.report.figures import draw_rates
from kdcache.distill.report.report import figure, make_figures, markdown_table, write_parts
from kdcache.distill.study.fidelity import Study, StudyEntry

REPORT = "fidelity.md"
MAP_ROWS = 6

_HEADER = [
    "target",
    "codec",
    "bytes a value",
    "KL",
    "KL at T=4",
    "same class %",
    "at borders %",
    "relative error",
]
_CHANGED_RGB = (213, 94, 0)
_SAME_RGB = (235, 235, 235)


def study_table(study: Study) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a target a row."""
    return _HEADER, [[target, *_cells(found)] for target, found in study.fidelity.items()]


def study_notes(study: Study) -> list[str]:
    """What a table has no place for, a line each."""
    notes = []
    if study.teacher_miou is not None:
        exact, stored = (100 * study.teacher_miou[name] for name in ("exact", "stored"))
        notes.append(
            f"the teacher's mIoU on these crops: {exact:.2f} % exact, {stored:.2f} % from the stored logits"
        )
    for target, found in study.fidelity.items():
        if "divergence" in found:
            seen = ", ".join(f"{name} {value:.1e}" for name, value in found["divergence"].items())
            notes.append(f"{target}, as methods see it: {seen}")
    if study.gradient_cosine is None:
        notes.append("gradients not compared: --student RUN names a half-trained student")
    else:
        cosines = ", ".join(f"{name} {cosine:.5f}" for name, cosine in study.gradient_cosine.items())
        notes.append(f"cosine of the student's gradients, exact against stored: {cosines}")
    return notes


def write_study(study: Study, classes: ClassSet, out: str | Path, title: str) -> Path:
    """Write a study's report into a folder; returns the path of fidelity.md. Raises KDCacheError where it cannot."""
    out = Path(out)
    figures = make_figures(out)
    for target, points in study.rates.items():
        _draw_target_rates(figures / f"rates-{target}.png", study.fidelity[target], points)
    if "logits" in study.fidelity:
        draw_maps(study.entries[:MAP_ROWS], classes).save(figures / "maps.png")
    about = (
        f"{len(study.entries)} entries, against the teacher in float32. KL is in nats, relative error is squared and "
        "of the values' variance, borders are cells with another class next to them. Padding takes no part."
    )
    parts = [
        f"# Fidelity of {title}",
        about,
        markdown_table(*study_table(study)),
        "\n".join(f"- {note}" for note in study_notes(study)),
        *(figure(out, f"rates-{target}", f"Rate against error, {target}") for target in study.rates),
        *(_rate_table(target, points) for target, points in study.rates.items()),
        figure(out, "maps", "Where the logits lost something"),
        *(_class_table(target, found, classes) for target, found in study.fidelity.items()),
    ]
    try:
        (out / "fidelity.json").write_text(json.dumps(study.to_dict(), indent=2) + "\n")
    except OSError as error:
        raise KDCacheError(f"cannot write to {out}: {error.strerror}", hint="--out DIR") from None
    return write_parts(out / REPORT, parts)


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


def _cells(found: Mapping[str, Any]) -> list[str]:
    codec = found["codec"]
    return [
        codec["name"] + (f":{codec['step']:g}" if "step" in codec else ""),
        f"{found['bytes_per_value']:.4f}",
        _small(found.get("kl")),
        _small(found.get("kl_t4")),
        _percent(found.get("agreement")),
        _percent(found.get("boundary_agreement")),
        _small(found["relative_error"]),
    ]


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _draw_target_rates(path: Path, own: Mapping[str, Any], points: Sequence[RatePoint]) -> None:
    """The KL divergence where there is one, else the relative error."""
    key, name = ("kl", "KL divergence") if own.get("kl") is not None else ("relative_error", "relative error")
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        place = (point.fidelity["bytes_per_value"], point.fidelity[key])
        curves.setdefault(point.codec.name, []).append(place)
    draw_rates(path, curves, (own["codec"]["name"], own["bytes_per_value"], own[key]), name)


def _rate_table(target: str, points: Sequence[RatePoint]) -> str:
    rows = [
        [
            point.request,
            f"{point.fidelity['bytes_per_value']:.4f}",
            _small(point.fidelity.get("kl")),
            _percent(point.fidelity.get("agreement")),
            _small(point.fidelity["relative_error"]),
        ]
        for point in points
    ]
    header = ["codec", "bytes a value", "KL", "same class %", "relative error"]
    return f"### Codecs for {target}\n\n{markdown_table(header, rows)}"


def _class_table(target: str, found: Mapping[str, Any], classes: ClassSet) -> str:
    if target not in LOGIT_TARGETS:
        return ""
    rows = [
        [name, _percent(share)] for name, share in zip(classes.names, found["class_agreement"], strict=True)
    ]
    return f"### Same class, {target}\n\n{markdown_table(['class', 'same class %'], rows)}"


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
