"""The README and the guides: commands that parse, links that lead somewhere, a README that stays a first screen."""

import re

import click
import pytest
from guides import GUIDES, ROOT, blocks, commands_of, lines_of, text_of

from kdcache.cli.main import COMMANDS, cli
from kdcache.cli.output import Console

README_LINES = 250


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_commands_of_all_guides_parse() -> None:
    lines = [line for guide in GUIDES for block in blocks(guide, "sh") for line in lines_of(block)]
    commands = [command for line in lines for command in commands_of(line)]
    assert {name for name, *_ in commands} == set(COMMANDS)
    for name, *arguments in commands:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        command.make_context(name, arguments, obj=Console())


@pytest.mark.parametrize("guide", GUIDES)
def test_links_lead_somewhere(guide: str) -> None:
    prose = re.sub(r"```.*?```", "", text_of(guide), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / guide).parent / path).resolve() if path else ROOT / guide
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_the_readme_is_a_first_screen() -> None:
    text = text_of("README.md")
    assert len(text.splitlines()) <= README_LINES
    assert text.index("## Install") < text.index("## Quickstart") < text.index("## The four commands")
    glossary = text.partition("## Words\n")[2].partition("\n## ")[0]
    assert re.findall(r"^- \*\*(\w+)\*\*:", glossary, re.MULTILINE) == [
        *("view", "pass", "entry", "unit", "ledger", "home")
    ]


def test_pictures_are_small() -> None:
    pictures = [path for path in (ROOT / "distill" / "examples").iterdir() if path.is_file()]
    assert pictures and all(path.stat().st_size < 200_000 for path in pictures)
