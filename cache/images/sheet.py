"""Picture sheets: rows of panels with titles, captions and a legend of classes, drawn with Pillow into one PNG.

`draw_sheet` draws entries of a store for `kdcache view`: the crop, its label, the teacher's classes, the teacher's
uncertainty (entropy), and its features as colours (the first three principal components as red, green and blue). It
shows errors that numbers hide: shifted targets, swapped classes, a teacher with the wrong normalisation.

Maps are enlarged by nearest neighbour, so that you see the stored cells. All rows share one scale: a colour means the
same entropy, or the same direction in feature space, everywhere on the sheet. All inputs are arrays; nothing here
depends on stores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from kdcache.cache.images.classes import IGNORE, ClassSet

NO_LABEL_RGB = (205, 205, 205)
BACKGROUND_RGB = (255, 255, 255)
TEXT_RGB = (30, 30, 30)
MUTED_RGB = (110, 110, 110)

MARGIN_PX = 16
GAP_PX = 8
TEXT_PX = 14
LINE_PX = 20
SWATCH_PX = 14
PANEL_WIDTH_PX = 320
PANEL_MAX_HEIGHT_PX = 400

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetRow:
    """One entry. A missing target is None; a column is omitted if no row has its target."""

    caption: str
    image: Array  # (H, W, 3) uint8 RGB
    valid_size: tuple[int, int]  # height and width in pixels of the part that is not padding
    label: Array | None = None  # (H, W) uint8, 255 for pixels without a class
    logits: Array | None = None  # (C, h, w) float
    features: Array | None = None  # (D, h, w) float


def draw_sheet(rows: Sequence[SheetRow], classes: ClassSet, header: str) -> Image.Image:
    """The sheet of some entries, an RGB image, with the lines of `header` at the top."""
    columns: dict[str, list[Array | None]] = {"crop": [row.image for row in rows]}
    present: set[int] = set()
    if any(row.label is not None for row in rows):
        columns["label"] = [None if row.label is None else colour_classes(row.label, classes) for row in rows]
        present.update(*(np.unique(row.label).tolist() for row in rows if row.label is not None))
    if any(row.logits is not None for row in rows):
        argmax = [None if row.logits is None else _on_crop(row.logits.argmax(axis=0), row) for row in rows]
        columns["teacher"] = [None if a is None else colour_classes(a, classes) for a in argmax]
        present.update(*(np.unique(a).tolist() for a in argmax if a is not None))
        columns |= _entropy_column(rows)
    if any(row.features is not None for row in rows):
        columns["features (3 components)"] = _feature_column(rows)
    return draw_grid(
        columns,
        captions=[row.caption for row in rows],
        header=header,
        legend=legend_of(present, classes),
    )


def draw_grid(
    columns: dict[str, list[Array | None]],  # title -> one (H, W, 3) uint8 panel for each row, None for a gap
    *,
    captions: Sequence[str],
    header: str = "",
    legend: Sequence[tuple[str, tuple[int, int, int]]] = (),
) -> Image.Image:
    """Panels in a grid, as an RGB image with a header, column titles, a caption above every row, and a legend.

    The first column contains photographs, which are scaled down smoothly. The other columns keep their exact colours.
    """
    font = ImageFont.load_default(size=TEXT_PX)
    width = 2 * MARGIN_PX + len(columns) * (PANEL_WIDTH_PX + GAP_PX) - GAP_PX
    inner = width - 2 * MARGIN_PX
    lines = [line for text in header.splitlines() for line in _wrap(text, font, inner)]
    positions, legend_height = _flow(legend, font, inner)
    panels = [
        [_fit(column[row], photograph=number == 0) for number, column in enumerate(columns.values())]
        for row in range(len(captions))
    ]
    heights = [max((p.height for p in row if p is not None), default=0) for row in panels]

    top = MARGIN_PX + LINE_PX * len(lines) + (GAP_PX if lines else 0)
    grid_height = LINE_PX + sum(LINE_PX + height + GAP_PX for height in heights)
    sheet = Image.new("RGB", (width, top + grid_height + legend_height + MARGIN_PX), BACKGROUND_RGB)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((MARGIN_PX, MARGIN_PX + number * LINE_PX), line, TEXT_RGB, font)
    lefts = [MARGIN_PX + number * (PANEL_WIDTH_PX + GAP_PX) for number in range(len(columns))]
    for left, title in zip(lefts, columns, strict=True):
        draw.text((left, top), title, TEXT_RGB, font)
    top += LINE_PX
    for caption, row, height in zip(captions, panels, heights, strict=True):
        draw.text((MARGIN_PX, top), _shorten(caption, font, inner), MUTED_RGB, font)
        for left, panel in zip(lefts, row, strict=True):
            if panel is not None:
                sheet.paste(panel, (left, top + LINE_PX))
        top += LINE_PX + height + GAP_PX
    for (name, colour), (x, y) in zip(legend, positions, strict=True):
        box = (MARGIN_PX + x, top + y + 2, MARGIN_PX + x + SWATCH_PX, top + y + 2 + SWATCH_PX)
        draw.rectangle(box, fill=colour, outline=MUTED_RGB)
        draw.text((box[2] + 6, top + y), name, TEXT_RGB, font)
    return sheet


def colour_classes(
    ids: Array,  # (H, W) integer class ids, 255 for pixels without a class
    classes: ClassSet,
) -> Array:
    """The label in the dataset's palette, (H, W, 3) uint8; pixels without a class are light grey."""
    table = np.full((256, 3), NO_LABEL_RGB, np.uint8)
    table[: len(classes.palette)] = classes.palette
    coloured: Array = table[ids]
    return coloured


def legend_of(present: set[int], classes: ClassSet) -> list[tuple[str, tuple[int, int, int]]]:
    """Names and colours of the class ids in `present`, in the order of the classes."""
    shown = [(name, classes.palette[i]) for i, name in enumerate(classes.names) if i in present]
    return [*shown, ("no label", NO_LABEL_RGB)] if IGNORE in present else shown


def entropy(
    logits: Array,  # (C, h, w) float
) -> Array:
    """Entropy of the softmax of each cell in nats, (h, w) float64 from 0 to ln C."""
    shifted = logits.astype(np.float64) - logits.max(axis=0)  # so that exp does not overflow
    normaliser = np.exp(shifted).sum(axis=0)
    expected = (np.exp(shifted) * shifted).sum(axis=0) / normaliser
    cells: Array = np.log(normaliser) - expected
    return cells


def feature_colours(
    maps: Sequence[Array],  # (D, h, w) float, any h and w
) -> list[Array]:
    """The first three principal components over all cells of all maps, as RGB: (h, w, 3) uint8 each.

    Each component is scaled from its 2nd to its 98th percentile. Its sign makes its largest weight positive, so that
    equal features give equal pictures.
    """
    cells = np.concatenate([m.reshape(len(m), -1).T for m in maps]).astype(np.float64)
    mean = cells.mean(axis=0)
    centred = cells - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    basis = vectors[:, ::-1][:, :3]  # eigh sorts by rising variance
    basis = basis * np.sign(np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0))
    low, high = np.percentile(centred @ basis, (2, 98), axis=0)
    pictures = []
    for m in maps:
        components = np.zeros((*m.shape[1:], 3))
        components[..., : basis.shape[1]] = (np.moveaxis(m, 0, -1) - mean) @ basis
        scale = np.where(high > low, high - low, 1.0)
        components[..., : basis.shape[1]] = (components[..., : basis.shape[1]] - low) / scale
        pictures.append((components.clip(0, 1) * 255).round().astype(np.uint8))
    return pictures


def _entropy_column(rows: Sequence[SheetRow]) -> dict[str, list[Array | None]]:
    maps = [None if row.logits is None else entropy(row.logits) for row in rows]
    highest = max((float(m.max()) for m in maps if m is not None), default=0.0)
    grey = [None if m is None else (m / max(highest, 1e-9) * 255).round().astype(np.uint8) for m in maps]
    panels = [
        None if g is None else _on_crop(np.repeat(g[..., None], 3, axis=2), row)
        for g, row in zip(grey, rows, strict=True)
    ]
    return {f"entropy (white: {highest:.2f} nat)": panels}


def _feature_column(rows: Sequence[SheetRow]) -> list[Array | None]:
    pictures = iter(feature_colours([row.features for row in rows if row.features is not None]))
    return [None if row.features is None else _on_crop(next(pictures), row) for row in rows]


def _on_crop(
    cells: Array,  # (h, w) class ids, or (h, w, 3) colours
    row: SheetRow,
) -> Array:
    """The map at the size of the crop, by nearest neighbour; padding is marked as having no class."""
    height, width = row.image.shape[:2]
    down = np.arange(height) * cells.shape[0] // height
    across = np.arange(width) * cells.shape[1] // width
    enlarged: Array = cells[down][:, across].copy()
    padding = np.ones((height, width), bool)
    padding[: row.valid_size[0], : row.valid_size[1]] = False
    enlarged[padding] = IGNORE if cells.ndim == 2 else np.array(NO_LABEL_RGB)
    return enlarged


def _fit(panel: Array | None, *, photograph: bool) -> Image.Image | None:
    if panel is None:
        return None
    height, width = panel.shape[:2]
    scale = min(PANEL_WIDTH_PX / width, PANEL_MAX_HEIGHT_PX / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.BOX if photograph and scale < 1 else Image.Resampling.NEAREST
    return Image.fromarray(np.ascontiguousarray(panel)).resize(size, method)


def _wrap(text: str, font: Any, width_px: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_shorten(line, font, width_px) for line in lines]


def _shorten(text: str, font: Any, width_px: int) -> str:
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "...") > width_px:
        text = text[:-1]
    return text + "..."


def _flow(
    legend: Sequence[tuple[str, tuple[int, int, int]]], font: Any, width_px: int
) -> tuple[list[tuple[int, int]], int]:
    """Top left corners of the legend's items, arranged in equal columns, and the height of the whole legend."""
    if not legend:
        return [], 0
    item_px = int(max(font.getlength(name) for name, _ in legend)) + SWATCH_PX + 24
    per_line = max(1, width_px // item_px)
    positions = [(i % per_line * item_px, i // per_line * LINE_PX) for i in range(len(legend))]
    return positions, GAP_PX + (positions[-1][1] + LINE_PX)
