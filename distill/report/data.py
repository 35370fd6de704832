"""A report as data: JSON with its numbers and its words, and its sheet as CSV. Fractions, seconds, no rounding."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdcache.distill.report.model import (
    Block,
    Cell,
    Code,
    Column,
    Facts,
    Figure,
    Gallery,
    Links,
    Paragraph,
    Report,
    Table,
)


def document(report: Report) -> dict[str, Any]:
    """A JSON object: the report's data, then `title`, `lead`, `cautions` and `sections`; what is not finite is null."""
    found: dict[str, Any] = finite(
        {
            **report.data,
            "title": report.title,
            "lead": list(report.lead),
            "cautions": report.all_cautions,
            "sections": [
                {"title": section.title, "blocks": [_block(block) for block in section.blocks]}
                for section in report.shown
            ],
        }
    )
    return found


def csv_text(table: Table, cautions: Sequence[str]) -> str:
    """A header and a line for each row; a missing value is empty. The last column repeats the report's cautions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(column.name for column in table.columns), "cautions"])
    for row in table.rows:
        values = [_csv_value(cell.value) for cell in row]
        writer.writerow([*values, " ".join(cautions)])
    return text.getvalue()


def _block(block: Block) -> dict[str, Any]:
    said: dict[str, Any] = {"kind": block.kind}
    match block:
        case Paragraph():
            return {**said, "text": block.text}
        case Facts():
            return {**said, "title": block.title, "facts": dict(block.known)}
        case Table():
            rows = [_row(block.columns, row) for row in block.rows]
            about = {
                "name": block.name,
                "caption": block.caption,
                "note": block.note,
                "caution": block.caution,
            }
            return {**said, **about, "rows": rows}
        case Figure():
            return {
                **said,
                "name": block.name,
                "title": block.title,
                "caption": block.caption,
                "alt": block.alt,
            }
        case Code():
            return {**said, "title": block.title, "lines": list(block.lines)}
        case Links():
            return {**said, "links": [list(link) for link in block.links]}
        case Gallery():
            rows = [
                {"title": title, "pictures": [{"name": each.name, "alt": each.alt} for each in pictures]}
                for title, pictures in block.rows
            ]
            return {**said, "rows": rows, "legend": dict(block.legend)}


def _row(columns: Sequence[Column], cells: Sequence[Cell]) -> dict[str, Any]:
    """Values by column, and under `label` what people read in place of a key."""
    found = {column.name: cell.value for column, cell in zip(columns, cells, strict=True)}
    label = next((cell.label for cell in cells if cell.label), None)
    return found if label is None else {**found, "label": label}


def _csv_value(value: Any) -> Any:
    """An interval by its mean."""
    return value[0] if isinstance(value, tuple) else value


def finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
