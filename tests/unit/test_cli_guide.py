"""cli/README.md says what the command line says, and makes sense of it."""

import re
from pathlib import Path

from cli_guide import COLUMNS, GUIDE, MARK, help_of, rendered

from kdcache.cli.main import COMMANDS


def test_the_guide_is_what_the_code_says() -> None:
    text = GUIDE.read_text()
    assert rendered(text) == text, "run scripts/cli-readme"


def test_no_machine_shows_in_it() -> None:
    assert str(Path.home()) not in GUIDE.read_text() and str(GUIDE.parent) not in GUIDE.read_text()


def test_help_fits_eighty_columns() -> None:
    """But for examples of commands, which are to be copied whole."""
    lines = [line for name in COMMANDS for line in help_of(name).splitlines()]
    assert [line for line in lines if len(line) > COLUMNS and not line.startswith("  kdcache ")] == []


def test_the_text_above_names_only_options_that_there_are() -> None:
    text, _, generated = GUIDE.read_text().partition(MARK)
    named = set(re.findall(r"`(--[a-z][a-z-]*)", text))
    assert named and named <= set(re.findall(r"--[a-z][a-z-]*", generated))
