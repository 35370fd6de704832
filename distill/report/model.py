"""What a report says: titles, facts, cautions, tables, figures and pictures, without a word on how they look.

A function for each kind of report builds a Report; html.py, markdown.py, terminal.py and data.py render it. Numbers become text
here and nowhere else, and all renderings show every caution.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from kdcache.distill.report.charts import Chart
from kdcache.distill.report.styles import Style
from kdcache.distill.units import duration_text

MINUS: Final = "\N{MINUS SIGN}"
UNKNOWN: Final = "-"

Interval = tuple[float, float | None, float | None]  # a mean, and where the true one lies


def percent(fraction: float | None, coarse: bool = False) -> str:
    """0.601 as "60.10", or "~60" where more digits would only show noise."""
    if fraction is None:
        return UNKNOWN
    return f"~{100 * fraction:.0f}" if coarse else f"{100 * fraction:.2f}"


def points(difference: float, coarse: bool = False) -> str:
    """A difference of fractions in points, signed: "+1.20", or "~+1"."""
    return (f"~{100 * difference:+.0f}" if coarse else f"{100 * difference:+.2f}").replace("-", MINUS)


def interval_text(value: Interval, coarse: bool = False) -> str:
    """As in "+1.20 (0.40 to 2.00)"."""
    mean, low, high = value
    if low is None or high is None:
        return points(mean, coarse)
    digits = 0 if coarse else 2
    ends = " to ".join(f"{100 * end:.{digits}f}" for end in (low, high)).replace("-", MINUS)
    return f"{points(mean, coarse)} ({ends})"


FORMATS: Final[Mapping[str, Callable[[Any, bool], str]]] = {
    "text": lambda value, _: str(value),
    "words": lambda value, _: str(value),  # text to the right, among numbers
    "count": lambda value, _: f"{value:.0f}",
    "number": lambda value, _: f"{value:.3g}".replace("-", MINUS),
    "small": lambda value, _: f"{value:.1e}",
    "rate": lambda value, _: f"{value:.4f}",
    "percent": percent,
    "points": points,
    "interval": interval_text,
    "share": lambda value, _: f"{100 * value:.1f} %",
    "change": lambda value, _: f"{100 * value:+.1f} %".replace("-", MINUS),
    "duration": lambda value, _: duration_text(value),
}
"""Text by the kind of a column: from a value, and whether it is too uncertain for decimals. Shares and scores are fractions."""


@dataclass(frozen=True, slots=True)
class Column:
    """What a column holds. The first column of a table names its rows."""

    title: str
    kind: str = "text"  # a key of FORMATS
    key: str = ""  # in JSON and CSV; the title if empty
    brief: bool = True  # a terminal shows it too
    narrow: bool = True  # also one that is too narrow for all; the last of the others goes first

    @property
    def name(self) -> str:
        return self.key or self.title

    @property
    def is_text(self) -> bool:
        return self.kind == "text"


@dataclass(frozen=True, slots=True)
class Cell:
    """A value, and what a page may show it with."""

    value: Any  # of the column's kind; None where there is none
    coarse: bool = False  # too uncertain for decimals
    shade: int = 0  # from -2, much worse, to 2, much better
    share: float | None = None  # of a bar behind the number
    style: Style | None = None  # before a name
    label: str = ""  # what people read if the value is a key


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    kind: ClassVar[str] = "table"
    name: str  # unique in its report
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""  # a sentence below it
    caution: str | None = None  # why its numbers show nothing reliable

    @classmethod
    def of(
        cls, name: str, caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Any]], **more: Any
    ) -> Self:
        """From rows of cells and of bare values."""
        cells = [[each if isinstance(each, Cell) else Cell(each) for each in row] for row in rows]
        return cls(name=name, caption=caption, columns=columns, rows=cells, **more)

    @property
    def header(self) -> list[str]:
        return [column.title for column in self.columns]

    @property
    def texts(self) -> list[list[str]]:
        """Every cell as text, row by row."""
        return [
            [cell_text(column, cell) for column, cell in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def merged(self, titles: Sequence[str]) -> "Table | Paragraph":
        """Without those of some columns that read like the first of them in every row, and with a sentence on it.

        Nothing but that sentence is left where they all agree.
        """
        first, *others = (self.header.index(title) for title in titles)
        same = [at for at in others if all(row[at] == row[first] for row in self.texts)]
        if not same:
            return self
        alike = " and ".join(f'"{self.header[at]}"' for at in same)
        note = f'{alike} would read the same as "{self.header[first]}" in every row.'
        if len(same) == len(others):
            return Paragraph(f"{self.caption}: {note}")
        kept = [at for at in range(len(self.columns)) if at not in same]
        return replace(
            self,
            columns=[self.columns[at] for at in kept],
            rows=[[row[at] for at in kept] for row in self.rows],
            note=" ".join(filter(None, (self.note, note))),
        )


def cell_text(column: Column, cell: Cell) -> str:
    if cell.label:
        return cell.label
    if cell.value is None:
        return "" if column.is_text else UNKNOWN
    return FORMATS[column.kind](cell.value, cell.coarse)


@dataclass(frozen=True, slots=True)
class Paragraph:
    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values; a value of None or "" is left out."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str | None]]
    title: str = ""

    @property
    def known(self) -> list[tuple[str, str]]:
        return [(name, value) for name, value in self.facts if value]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    kind: ClassVar[str] = "figure"
    name: str  # of its file, unique in its report
    title: str
    caption: str
    chart: Chart
    alt: str  # what is seen, for those who cannot see it


@dataclass(frozen=True, slots=True)
class Code:
    kind: ClassVar[str] = "code"
    lines: Sequence[str]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Links:
    """Other reports: a rendering links to the file of its own kind."""

    kind: ClassVar[str] = "links"
    links: Sequence[tuple[str, str]]  # text, address relative to the report, without a suffix


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    name: str
    alt: str
    path: Path  # of a PNG or JPEG


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Pictures side by side, a row for each title, and the colours of the classes that they show."""

    kind: ClassVar[str] = "gallery"
    rows: Sequence[tuple[str, Sequence[Picture]]]
    legend: Sequence[tuple[str, str]] = ()  # class, colour as #rrggbb
    wide: bool = False  # one large picture a row


Block = Paragraph | Facts | Table | Figure | Code | Links | Gallery


@dataclass(frozen=True, slots=True)
class Section:
    """What belongs together under one title. `rows` of figures are side by side where there is space."""

    title: str
    blocks: Sequence[Block]
    brief: bool = False  # a terminal shows its tables too

    @property
    def groups(self) -> Iterator[tuple[Sequence[Figure], Block | None]]:
        """Blocks in their order: runs of figures, or one block that is none."""
        figures: list[Figure] = []
        for block in self.blocks:
            if isinstance(block, Figure):
                figures.append(block)
                continue
            if figures:
                yield figures, None
            figures = []
            yield (), block
        if figures:
            yield figures, None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All of it."""

    title: str
    lead: Sequence[str]  # sentences: what came out
    sections: Sequence[Section]  # those without blocks are left out
    about: str = ""  # how to read it
    cautions: Sequence[str] = ()  # what keeps the numbers from meaning what they seem to
    facts: Facts = field(default_factory=lambda: Facts(()))
    data: Mapping[str, Any] = field(default_factory=dict)  # JSON has these keys too
    sheet: Table | None = None  # what CSV has

    @property
    def shown(self) -> list[Section]:
        return [section for section in self.sections if section.blocks]

    @property
    def figures(self) -> list[Figure]:
        return [block for section in self.shown for block in section.blocks if isinstance(block, Figure)]

    @property
    def all_cautions(self) -> list[str]:
        """Those of the whole and those of its tables."""
        tables = (block for section in self.shown for block in section.blocks if isinstance(block, Table))
        return list(dict.fromkeys([*self.cautions, *(table.caution for table in tables if table.caution)]))
