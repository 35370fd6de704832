"""Console: data to stdout, everything else to stderr.

Data is a table, or one JSON document with `--json`. On a terminal tables fit its width and headings are bold; in a pipe
or a file they are plain aligned text that is never folded, so that scripts can cut it. Progress is a bar (bars.py) on a
terminal, else a plain line every few seconds. Of several processes only the first speaks, except for errors.

rich is imported when something is first drawn on a terminal: `kdcache --help` does without it.
"""

import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

from kdcache.cache.progress import Progress, silent
from kdcache.cli.printable import printable
from kdcache.distill.units import size_text

if TYPE_CHECKING:
    from rich.console import Console as Terminal
    from rich.table import Table

    from kdcache.cli.bars import Bar

_LINE_SECONDS = 5.0
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]\d+)?( ?%)?|-?")
_GAP = 2  # blanks between columns
_NARROW = 16  # a column that folds keeps at least so many characters

_bar: "Bar | None" = None  # on the screen now; what else goes to stderr is printed above it


class Console:
    """What a command writes to. `json` says whether data is one JSON document; `args` are the words after its name."""

    def __init__(self, *, json: bool = False, args: Sequence[str] = ()) -> None:
        self.json = json
        self.args = tuple(args)
        self.rank = int(os.environ.get("RANK", "0"))  # set by `accelerate launch`
        _send_logs_to_stderr(quiet=self.rank != 0)

    def document(self, value: Mapping[str, Any] | Sequence[Any], *, on_one_line: bool = False) -> None:
        """The data of a command under `--json`: one object or list. NaN and infinity, which JSON lacks, become null."""
        if self.rank == 0:
            from kdcache.distill.report.data import finite

            click.echo(json.dumps(finite(value), indent=None if on_one_line else 2, allow_nan=False))

    def fields(self, values: Mapping[str, Any]) -> None:
        """Aligned `name  value` lines; a value of several lines stays in its column."""
        if is_terminal(sys.stdout):
            grid = _columns(["", ""], [True, False], show_header=False)
            for name, value in values.items():
                grid.add_row(_text(name, "bold"), _text(str(value)))
            self._draw(grid)
            return
        width = max((len(name) for name in values), default=0)
        for name, value in values.items():
            lines = str(value).splitlines() or [""]
            self.line(f"{name:<{width}}  {lines[0]}".rstrip())
            for line in lines[1:]:
                self.line(f"{'':<{width}}  {line}")

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[object]], *, optional: Sequence[str] = ()
    ) -> None:
        """Aligned columns; those of numbers to the right.

        Args:
            optional: columns to leave out, the first one first, while the table is wider than the terminal. Others
                fold, or follow in a second table that repeats the first column. Off a terminal all columns are written.
        """
        cells = [[str(cell) for cell in row] for row in rows]
        right = [all(_NUMBER.fullmatch(row[i]) for row in cells) for i in range(len(header))]
        if is_terminal(sys.stdout):
            self._draw_table(header, cells, right, optional)
            return
        widths = [max(len(text) for text in column) for column in zip(header, *cells, strict=True)]
        for texts in ([*header], *cells):
            padded = [
                text.rjust(width) if to_right else text.ljust(width)
                for text, width, to_right in zip(texts, widths, right, strict=True)
            ]
            self.line("  ".join(padded).rstrip())

    def line(self, text: str) -> None:
        """One line of data."""
        if self.rank == 0:
            click.echo(printable(text))

    def note(self, text: str) -> None:
        """One line for the reader at the terminal, not part of the data."""
        if self.rank == 0:
            say(text)

    def starting(self, text: str) -> None:
        """A note at once, before imports that take seconds. Scripts that read `--json` do not need it."""
        if not self.json:
            self.note(text)

    def next(self, *words: object, why: str = "") -> None:
        """The last line of a command: the one to type next, quoted for a shell."""
        if self.rank == 0 and not self.json:
            command = shlex.join(str(word) for word in words)
            say(f"{command}    # {why}" if why else command, label="next: ", style="green", whole=True)

    def error(self, kind: str, message: str, hint: str | None, exit_code: int) -> None:
        if self.json:
            document = {"error": kind, "message": message, "hint": hint, "exit_code": exit_code}
            click.echo(json.dumps(document), err=True)
            return
        process = f" (process {self.rank})" if self.rank else ""
        say(message, label=f"error{process}: ", style="bold red")
        if hint:
            say(hint, label="hint: ", style="cyan", whole=True)

    @contextmanager
    def progress(self, label: str, *, in_bytes: bool = False) -> Iterator[Progress]:
        """A Progress drawn on stderr until the block ends. Work that starts again from 0 gets a new bar."""
        global _bar
        if self.rank != 0:
            yield silent
            return
        text: Callable[[int], str] = size_text if in_bytes else str
        if not is_terminal(sys.stderr):
            lines = _Lines(label, text)
            try:
                yield lines
            finally:
                lines.close()
            return
        from kdcache.cli.bars import Bar

        _bar = Bar(terminal(stderr=True), printable(label), text)
        try:
            yield _bar
        finally:
            _bar.close()
            _bar = None

    def _draw_table(
        self, header: Sequence[str], cells: list[list[str]], right: list[bool], optional: Sequence[str]
    ) -> None:
        shown, width = list(range(len(header))), terminal().width
        widths = [max(_width(text) for text in column) for column in zip(header, *cells, strict=True)]

        def fits(columns: Sequence[int], widths: Sequence[int] = widths) -> bool:
            return sum(widths[i] + _GAP for i in columns) - _GAP <= width

        left_out = []
        for column in map(header.index, optional):
            if not fits(shown):
                shown.remove(column)
                left_out.append(column)
        for column in reversed(left_out):  # a narrow one may fit after all
            if fits([*shown, column]):
                shown = sorted([*shown, column])
        folded = [w if whole else min(w, _NARROW) for w, whole in zip(widths, right, strict=True)]
        for part in _parts(shown, lambda columns: fits(columns, folded)):
            whole = [right[i] for i in part]
            table = _columns([header[i] for i in part], whole, right=whole)
            for row in cells:
                table.add_row(*(_text(row[i]) for i in part))
            self._draw(table)

    def _draw(self, table: "Table") -> None:
        if self.rank == 0:
            terminal().print(table)


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at a stream through a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def terminal(*, stderr: bool = False) -> "Terminal":
    """rich's console, which asks for the width and honours NO_COLOR. It never takes text for markup."""
    from rich.console import Console as Terminal

    return Terminal(stderr=stderr, highlight=False, markup=False, emoji=False)


def say(text: str, *, label: str = "", style: str = "", whole: bool = False) -> None:
    """One line on stderr, above the bar where one is drawn.

    Args:
        label: in front of it, coloured by `style` where the terminal wants colours.
        whole: leave it to the terminal to wrap: a command that is copied must not have line breaks in it.
    """
    if not is_terminal(sys.stderr):
        click.echo(label + printable(text), err=True)
        return
    from rich.text import Text

    screen = _bar.screen if _bar else terminal(stderr=True)
    screen.print(Text.assemble((label, style), printable(text)), soft_wrap=whole)


def _text(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(printable(text).replace("\t", "    "), style=style)


def _width(text: str) -> int:
    """Columns of the terminal that a text takes: Chinese characters take two."""
    from rich.cells import cell_len

    return cell_len(printable(text))


def _parts(columns: Sequence[int], fits: Callable[[Sequence[int]], bool]) -> list[list[int]]:
    """The columns of a table in as many tables as it takes to fit the terminal, each led by the first column."""
    parts = [[*columns[:1]]]
    for column in columns[1:]:
        if len(parts[-1]) > 1 and not fits([*parts[-1], column]):
            parts.append([*columns[:1]])
        parts[-1].append(column)
    return parts


def _columns(
    header: Sequence[str], whole: Sequence[bool], *, right: Sequence[bool] = (), show_header: bool = True
) -> "Table":
    """A table without lines; columns that are not kept whole fold where the terminal is narrow."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=show_header)
    for i, name in enumerate(header):
        table.add_column(
            _text(name),
            no_wrap=whole[i],
            overflow="fold",
            justify="right" if right and right[i] else "left",
            min_width=None if whole[i] else min(_NARROW, max(4, _width(name))),
        )
    return table


class _Lines:
    """Progress as plain lines, for log files: the first and the last of each piece of work, and one every few seconds."""

    def __init__(self, label: str, text: Callable[[int], str]) -> None:
        self._label = label
        self._text = text
        self._last = ""
        self._pending = ""
        self._next = 0.0
        self._complete = False
        self._at = (0, 0)

    def __call__(self, done: int, total: int, note: str) -> None:
        is_new = done < self._at[0] or total != self._at[1]
        self._at = (done, total)
        far = f"{self._text(done)}/{self._text(total)}" if total else self._text(done)
        self._pending = f"{self._label} {far} {note}".rstrip()
        if is_new or time.monotonic() >= self._next or (done == total and not self._complete):
            self._write()
        self._complete = done == total  # what comes after, such as an evaluation, is written by the clock

    def close(self) -> None:
        if self._pending:
            self._write()

    def _write(self) -> None:
        self._next = time.monotonic() + _LINE_SECONDS
        if self._pending != self._last:
            say(self._pending)
        self._last = self._pending


class _LogHandler(logging.Handler):
    """Log records as lines on stderr, above a bar where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        warns = record.levelno >= logging.WARNING
        say(self.format(record), label=f"{record.levelname.lower()}: " if warns else "", style="yellow")


def _send_logs_to_stderr(*, quiet: bool) -> None:
    logger = logging.getLogger("kdcache")
    logger.handlers = [_LogHandler()]
    logger.setLevel(logging.ERROR if quiet else logging.INFO)
    logger.propagate = False
