"""Progress: how the library tells whoever called it how far a long piece of work has come.

The command line draws it; a program may pass any function of its own.
"""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, note); done grows to total, the note is a few words such as the step's loss."""


def silent(done: int, total: int, note: str) -> None:
    """The progress that nobody looks at."""
