"""Progress bars of rich: the bar fills the line, the note has a line of its own below it."""

import time
from collections.abc import Callable, Iterable

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from kdcache.cli.printable import printable
from kdcache.distill.units import duration_text

_REDRAW_S = 0.1
_PACE_S = 600.0  # the time left is estimated from the steps of the last minutes: a step may take one


class Bar:
    """A Progress drawn on a terminal. Work that starts again from 0, or gets another total, gets a new bar.

    It is drawn by whoever calls it, at most ten times a second: a thread of its own could hold rich's lock while a
    worker process is forked, which would then hang at its first warning.
    """

    def __init__(self, screen: Terminal, label: str, text: Callable[[int], str]) -> None:
        self.screen = screen
        self._label = label
        self._text = text
        self._shown: _Bars | None = None
        self._task = TaskID(0)
        self._done = 0
        self._total = 0
        self._next = 0.0

    def __call__(self, done: int, total: int, note: str) -> None:
        if self._shown is None or total != self._total or done < self._done:
            self.close()
            self._shown = _Bars(self.screen)
            self._task = self._shown.add_task(self._label, total=total or None, completed=done, count="")
            self._shown.start()
            self._next = 0.0
        self._done, self._total = done, total
        count = f"{self._text(done)}/{self._text(total)}" if total else self._text(done)
        self._shown.update(self._task, completed=done, count=count)
        self._shown.note = printable(note) or self._shown.note
        if time.monotonic() >= self._next or done == total:
            self._shown.refresh()
            self._next = time.monotonic() + _REDRAW_S

    def close(self) -> None:
        """Leave the bar as it is on the screen."""
        if self._shown is not None:
            self._shown.stop()
            self._shown = None


class _Bars(Progress):
    """One bar, and below it a note that is cut at the terminal's width."""

    def __init__(self, screen: Terminal) -> None:
        self.note = ""
        super().__init__(
            _Words(lambda task: task.description),
            BarColumn(bar_width=None),
            _Words(lambda task: str(task.fields["count"])),
            _Words(_times),
            console=screen,
            expand=True,
            auto_refresh=False,
            redirect_stdout=False,  # stdout may be a pipe, whose data must not come out of stderr
            speed_estimate_period=_PACE_S,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.note:
            yield Text(f"  {self.note}", style="dim", no_wrap=True, overflow="ellipsis")


class _Words(ProgressColumn):
    """A column of plain text: rich's own takes "[red]" in a name for markup."""

    def __init__(self, words: Callable[[Task], str]) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._words = words

    def render(self, task: Task) -> Text:
        return Text(self._words(task))


def _times(task: Task) -> str:
    """How long it took so far, and the time left as far as it can be foreseen."""
    spent = duration_text(round(task.finished_time or task.elapsed or 0))
    if task.finished or task.time_remaining is None:
        return spent
    return f"{spent}, {duration_text(round(task.time_remaining))} left"
