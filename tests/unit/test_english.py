"""The text of the project, in code and guides, is plain English: phrases that a tired reader has to read twice are out."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

RIDDLES = re.compile(
    r"\b(stands?|stood|bears?|at hand|for ever|mend(s|ed|ing)?|(goes|go|went|going) on|what holds zero"
    r"|(is|are|was|be) no (?!longer|more|such|later)\w+|cannot be|can not be|(is|are|was|be|being|been) told|to be told"
    r"|of one's own|none the less|by hand of|there it is|lies? in wait)\b",
    re.IGNORECASE,
)
FOLDERS = ("cache", "distill", "cli", "scripts")
GUIDES = (
    "README.md",
    "CHANGELOG.md",
    "cache/README.md",
    "cache/FORMAT.md",
    "distill/README.md",
    "cli/README.md",
)
ALLOWED = ("stand in for", "stand-in", "stands for")


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of the comments and strings of a Python file, of every line of any other."""
    if path.suffix != ".py":
        yield from enumerate(path.read_text().splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or "FSTRING" in tokenize.tok_name[token.type]:
            yield from enumerate(token.string.splitlines(), token.start[0])


def texts(root: Path, folder: str) -> list[Path]:
    if folder == "guides":
        return [root / name for name in GUIDES if (root / name).exists()]
    return [
        path for path in sorted((root / folder).rglob("*")) if path.is_file() and path.suffix in (".py", "")
    ]


@pytest.mark.parametrize("folder", ["guides", *FOLDERS])
def test_no_riddles(root: Path, folder: str) -> None:
    found = []
    for path in texts(root, folder):
        for number, text in prose(path):
            for allowed in ALLOWED:
                text = text.replace(allowed, "")
            if match := RIDDLES.search(text):
                found.append(f"{path.relative_to(root)}:{number}: {match[0]!r} in {text.strip()[:100]}")
    assert not found, "\n".join(found)
