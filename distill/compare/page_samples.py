"""Sample predictions on the page: an image, its label, and what teacher and students make of it, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdcache.distill.compare.account import COMPLETE
from kdcache.distill.compare.page_charts import NOTHING
from kdcache.distill.compare.ranking import Ranking
from kdcache.distill.compare.standings import Standings
from kdcache.distill.report.markup import Markup, join, tag
from kdcache.distill.report.sample_files import SampleFiles

MOST_IMAGES = 3
TEACHER = "teacher"  # a folder of the comparison that may hold the teacher's samples


def sample_section(folder: Path, standings: Standings, ranking: Ranking) -> Markup:
    """Of the first seed's runs on a ranking's rung, in its order; empty where no run has left samples."""
    seed = standings.contest.seeds[0]
    folders = {
        o.start.contender.name: folder / o.folder
        for o in standings.outcomes
        if o.status == COMPLETE
        and o.start.rung == ranking.rung
        and o.start.seed == seed
        and not o.start.again
    }
    places = {TEACHER: folder / TEACHER}
    places |= {row.contender: folders[row.contender] for row in ranking.rows if row.contender in folders}
    found = {name: files for name, place in places.items() if (files := SampleFiles.read(place))}
    if not found:
        return NOTHING
    first = next((files for name, files in found.items() if name != TEACHER), found.get(TEACHER))
    assert first is not None
    rows = [_row(found, first, image, index) for index, image in enumerate(first.images[:MOST_IMAGES])]
    return join(_legend(list(found.values())), *rows)


def _row(found: Mapping[str, SampleFiles], first: SampleFiles, image: str, index: int) -> Markup:
    shown = [(name, first.picture(index, name)) for name in ("image", "label")]
    shown += [
        (name, files.picture(index, "prediction"))
        for name, files in found.items()
        if index < len(files.images) and files.images[index] == image
    ]
    figures = [
        tag("figure", tag("img", src=source, alt=f"{image}: {name}"), tag("figcaption", name))
        for name, source in shown
        if source
    ]
    return join(tag("h3", image), tag("div", *figures, class_="samples"))


def _legend(found: Sequence[SampleFiles]) -> Markup:
    """The classes that any of the pictures shows."""
    colours = dict(entry for files in found for entry in files.legend)
    entries = (
        tag("li", tag("span", class_="swatch", style=f"background:{colour}"), name)
        for name, colour in colours.items()
    )
    return tag("ul", *entries, class_="legend")
