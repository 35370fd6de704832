"""Console: data to stdout, everything else to stderr.

Data is an aligned table, or one JSON document with `--json`. Progress is a bar where stderr is a terminal and a plain
line every few seconds where it is not. Of several processes only the first speaks, except for errors.
"""

import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from kdcache.cache.progress import Progress, silent
from kdcache.distill.units import size_text

if TYPE_CHECKING:
    from tqdm import tqdm

_LINE_SECONDS = 5.0
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]\d+)?( ?%)?|-?")


class Console:
    """What a command writes to. `json` says whether data is one JSON document."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self.rank = int(os.environ.get("RANK", "0"))  # set by `accelerate launch`
        _send_logs_to_stderr(quiet=self.rank != 0)

    def document(self, value: Mapping[str, Any] | Sequence[Any], *, on_one_line: bool = False) -> None:
        """The data of a command under `--json`: one object or list. NaN and infinity, which JSON lacks, become null."""
        if self.rank == 0:
            click.echo(json.dumps(_finite(value), indent=None if on_one_line else 2, allow_nan=False))

    def fields(self, values: Mapping[str, Any]) -> None:
        """Aligned `name  value` lines; a value of several lines stays in its column."""
        width = max((len(name) for name in values), default=0)
        for name, value in values.items():
            lines = str(value).splitlines() or [""]
            self.line(f"{name:<{width}}  {lines[0]}".rstrip())
            for line in lines[1:]:
                self.line(f"{'':<{width}}  {line}")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Aligned columns; those of numbers to the right."""
        cells = [[str(cell) for cell in row] for row in rows]
        widths = [max(len(text) for text in column) for column in zip(header, *cells, strict=True)]
        right = [all(_NUMBER.fullmatch(row[i]) for row in cells) for i in range(len(header))]
        for texts in ([*header], *cells):
            padded = [
                text.rjust(width) if to_right else text.ljust(width)
                for text, width, to_right in zip(texts, widths, right, strict=True)
            ]
            self.line("  ".join(padded).rstrip())

    def line(self, text: str) -> None:
        """One line of data."""
        if self.rank == 0:
            click.echo(_printable(text))

    def note(self, text: str) -> None:
        """One line for the reader at the terminal, not part of the data."""
        if self.rank == 0:
            click.echo(_printable(text), err=True)

    def error(self, kind: str, message: str, hint: str | None, exit_code: int) -> None:
        if self.json:
            document = {"error": kind, "message": message, "hint": hint, "exit_code": exit_code}
            click.echo(json.dumps(document), err=True)
            return
        process = f" (process {self.rank})" if self.rank else ""
        click.echo(_printable(f"error{process}: {message}"), err=True)
        if hint:
            click.echo(_printable(f"hint: {hint}"), err=True)

    @contextmanager
    def progress(self, label: str, *, in_bytes: bool = False) -> Iterator[Progress]:
        """A Progress drawn on stderr until the block ends. Work that starts again from 0 gets a new bar."""
        if self.rank != 0:
            yield silent
            return
        drawn = _Bar(label, in_bytes) if sys.stderr.isatty() else _Lines(label, in_bytes)
        try:
            yield drawn
        finally:
            drawn.close()


def _printable(text: str) -> str:
    """The text with control characters spelt out: names in a stranger's store may hold sequences that a terminal obeys."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class _Bar:
    """Progress as a tqdm bar."""

    def __init__(self, label: str, in_bytes: bool) -> None:
        self._label = label
        self._unit: dict[str, Any] = {"unit": "B", "unit_scale": True} if in_bytes else {}
        self._bar: tqdm[Any] | None = None

    def __call__(self, done: int, total: int, note: str) -> None:
        from tqdm import tqdm

        if self._bar is None or (self._bar.total or 0) != total or done < self._bar.n:
            self.close()
            self._bar = tqdm(
                total=total or None,
                initial=done,
                desc=self._label,
                file=sys.stderr,
                dynamic_ncols=True,
                **self._unit,
            )
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Lines:
    """Progress as plain lines, for log files: the first, the last, and one every few seconds."""

    def __init__(self, label: str, in_bytes: bool) -> None:
        self._label = label
        self._text: Callable[[int], str] = size_text if in_bytes else str
        self._last = ""
        self._pending = ""
        self._next = 0.0
        self._complete = False

    def __call__(self, done: int, total: int, note: str) -> None:
        far = f"{self._text(done)}/{self._text(total)}" if total else self._text(done)
        self._pending = f"{self._label} {far} {note}".rstrip()
        if time.monotonic() >= self._next or (done == total and not self._complete):
            self._write()
        self._complete = done == total  # what comes after, such as an evaluation, is told by the clock

    def close(self) -> None:
        if self._pending:
            self._write()

    def _write(self) -> None:
        self._next = time.monotonic() + _LINE_SECONDS
        if self._pending != self._last:
            print(self._pending, file=sys.stderr, flush=True)
        self._last = self._pending


class _LogHandler(logging.Handler):
    """Log records as plain lines on stderr, above a bar where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


def _send_logs_to_stderr(*, quiet: bool) -> None:
    logger = logging.getLogger("kdcache")
    logger.handlers = [_LogHandler()]
    logger.setLevel(logging.ERROR if quiet else logging.INFO)
    logger.propagate = False


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
