"""A report on a terminal: the tables and sentences of its brief sections, and every caution."""

from collections.abc import Sequence
from typing import Protocol

from kdcache.distill.report.model import MINUS, Paragraph, Report, Table


class Console(Protocol):
    """Of cli/output.py, what this needs."""

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None: ...

    def line(self, text: str) -> None: ...


def show(report: Report, console: Console) -> None:
    """Print what someone at a terminal wants to know of it."""
    blocks = [block for section in report.shown if section.brief for block in section.blocks]
    for table in blocks:
        if isinstance(table, Table):
            _show_table(table, console)
    for sentence in [*report.lead, *(block.text for block in blocks if isinstance(block, Paragraph))]:
        console.line(_ascii(sentence))
    for caution in report.all_cautions:
        console.line(f"caution: {_ascii(caution)}")


def _show_table(table: Table, console: Console) -> None:
    shown = [at for at, column in enumerate(table.columns) if column.brief]
    console.line(_ascii(table.caption))
    console.table(
        [table.header[at] for at in shown], [[_ascii(row[at]) for at in shown] for row in table.texts]
    )
    console.line("")


def _ascii(text: str) -> str:
    """With the minus that a terminal's columns are aligned by."""
    return text.replace(MINUS, "-")
