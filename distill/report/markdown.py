"""A report as Markdown, with its figures and pictures as files beside it."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdcache.distill.report.model import Block, Code, Facts, Figure, Gallery, Links, Paragraph, Report, Table

FIGURES = "figures"


def markdown(report: Report, folder: Path) -> str:
    """The text of a file in `folder`, where figures are in FIGURES."""
    parts = [f"# {plain(report.title)}", " ".join(map(plain, report.lead))]
    parts.append("\n".join(f"- **Caution:** {plain(caution)}" for caution in report.cautions))
    parts += [plain(report.about), *_block(report.facts, folder)]
    for section in report.shown:
        parts.append(f"## {plain(section.title)}")
        parts += [part for block in section.blocks for part in _block(block, folder)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(plain(cell) for cell in cells) + " |"

    return "\n".join([line(header), "| " + " | ".join(["---"] * len(header)) + " |", *map(line, rows)])


def plain(text: str) -> str:
    """Text that stays text: no markup of Markdown or HTML, and on one line."""
    return re.sub(r"([|<>\[\]`*\\])", r"\\\1", " ".join(text.split()))


def _block(block: Block, folder: Path) -> Iterator[str]:
    match block:
        case Paragraph():
            yield plain(block.text)
        case Facts() if block.known:
            yield f"### {plain(block.title)}" if block.title else ""
            yield markdown_table(["", ""], block.known)
        case Table():
            yield f"### {plain(block.caption)}"
            yield f"**Caution:** {plain(block.caution)}" if block.caution else ""
            yield markdown_table(block.header, block.texts)
            yield plain(block.note)
        case Figure():
            yield f"### {plain(block.title)}"
            drawn = Path(FIGURES, f"{block.name}.svg")
            yield (
                f"![{plain(block.alt)}]({drawn.as_posix()})"
                if (folder / drawn).is_file()
                else plain(block.alt)
            )
            yield plain(block.caption)
        case Code():
            yield f"### {plain(block.title)}" if block.title else ""
            yield "\n".join(["```sh", *block.lines, "```"])
        case Links():
            yield "\n".join(f"- [{plain(text)}]({address}.md)" for text, address in block.links)
        case Gallery():
            yield from _gallery(block, folder)


def _gallery(block: Gallery, folder: Path) -> Iterator[str]:
    for title, pictures in block.rows:
        yield f"### {plain(title)}"
        shown = [
            f"![{plain(each.alt)}]({os.path.relpath(each.path, folder).replace(' ', '%20')})"
            for each in pictures
        ]
        if len(pictures) == 1:
            yield shown[0]
        else:
            names = " | ".join(plain(picture.name) for picture in pictures)
            yield f"| {names} |\n| {' | '.join(['---'] * len(shown))} |\n| {' | '.join(shown)} |"
    if block.legend:
        yield "Colours: " + ", ".join(f"{plain(name)} {colour}" for name, colour in block.legend)
