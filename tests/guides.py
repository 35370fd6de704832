"""The README and the guides as data: their blocks, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUIDES = ("README.md", "cache/README.md", "distill/README.md", "cli/README.md", "tests/README.md")

# A block runs here unless one of its lines needs what a test has not: data, a bucket, a cluster, hours, an installation.
ELSEWHERE = ("cityscapes", "s3://", "scripts/", "sbatch", "accelerate")


def text_of(guide: str) -> str:
    return (ROOT / guide).read_text()


def blocks(guide: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(guide), re.DOTALL | re.MULTILINE)


def block_after(guide: str, words: str, language: str) -> str:
    """The first block of a language after some words."""
    match = re.search(re.escape(words) + rf".*?```{language}\n(.*?)```", text_of(guide), re.DOTALL)
    assert match, f"{guide} has no block of {language} after {words!r}"
    return match[1]


def lines_of(block: str) -> list[str]:
    """Its lines, continued ones joined."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def commands_of(line: str) -> Iterator[list[str]]:
    """The words behind `kdcache` of every command in a line, also of those that Accelerate or Slurm starts."""
    words = shlex.split(line, comments=True)
    for name in ("kdcache", "kdcache.cli"):
        if name in words:
            yield words[words.index(name) + 1 :]
            return
    for word in words:
        if "kdcache " in word:
            yield from commands_of(word)


def runs_here(block: str) -> bool:
    return not any(
        word in line or ("--budget" in line and "--dry-run" not in line)
        for line in lines_of(block)
        for word in ELSEWHERE
    )
