"""cli/README.md: its text ends at a mark, and all after the mark is what the command line says of itself.

`scripts/cli-readme` runs this file, which writes the guide again; unit/test_cli_guide.py compares the two.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from kdcache.cli.main import COMMANDS, EXIT_CODES, run

GUIDE = Path(__file__).resolve().parent.parent / "cli" / "README.md"
MARK = "<!-- All below is written by scripts/cli-readme. -->\n"
COLUMNS = 80


def rendered(text: str) -> str:
    """The guide with the part below the mark made again."""
    written, mark, _ = text.partition(MARK)
    assert mark, f"the guide lacks the line {MARK!r}"
    sections = [f"### kdcache {name}\n\n```text\n{help_of(name)}\n```\n" for name in COMMANDS]
    tables = [
        "## Commands\n",
        table("command", "does", {f"`kdcache {name}`": line for name, line in COMMANDS.items()}),
        "## Exit codes\n",
        table("exit code", "means", {str(code): meaning for code, meaning in EXIT_CODES.items()}),
        "## Help of every command\n",
    ]
    return "\n".join([written + mark, *tables, *sections])


def table(left: str, right: str, rows: dict[str, str]) -> str:
    lines = [f"| {left} | {right} |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows.items())]
    return "\n".join(lines) + "\n"


def help_of(name: str) -> str:
    """`kdcache NAME --help` as a terminal of 80 columns shows it, without colours."""
    text = io.StringIO()
    with plain_terminal(), contextlib.redirect_stdout(text):
        code = run([name, "--help"])
    assert code == 0, name
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


@contextlib.contextmanager
def plain_terminal() -> Iterator[None]:
    """No variable of the shell shows in the text: neither a width of its own nor a default of the user's."""
    before = dict(os.environ)
    for variable in [variable for variable in before if variable.startswith("KDCACHE_")]:
        del os.environ[variable]
    os.environ.pop("FORCE_COLOR", None)
    os.environ.update(COLUMNS=str(COLUMNS), NO_COLOR="1", TERM="dumb")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    GUIDE.write_text(rendered(GUIDE.read_text()))
