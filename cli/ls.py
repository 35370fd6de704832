"""`kdcache ls`: the stores of the home."""

from typing import TYPE_CHECKING, Any

import click

from kdcache.cli import options
from kdcache.cli.output import Console, size_text

if TYPE_CHECKING:
    from kdcache.cache.store import Home


@options.command()
@options.home_option
@options.json_option
@click.pass_obj
def command(console: Console, home: str) -> None:
    """List the stores of the home. One that is damaged is named with what is wrong, and hides no other."""
    from kdcache.cache.objects import redact
    from kdcache.cache.store import list_stores

    summaries, damaged = _summarise_all(list_stores(home))
    if console.json:
        console.document([*summaries, *({"url": url, "damaged": why} for url, why in damaged.items())])
        return
    if summaries:
        console.table(
            ("store", "dataset", "teacher", "crop", "targets", "passes", "size", "built"),
            [_row(summary) for summary in summaries],
        )
    elif not damaged:
        console.note(f"no stores under {redact(home)}; `kdcache build --dataset NAME` begins one")
    for url, why in damaged.items():
        console.line(f"damaged: {url}: {why}")


def _summarise_all(home: "Home") -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Summaries of the stores that can be read; of the others, by URL, why not."""
    from kdcache.cache.errors import KDCacheError
    from kdcache.cache.objects import redact
    from kdcache.cli.home import built_at
    from kdcache.cli.info import summarise

    summaries = []
    damaged = {url: str(error) for url, error in home.unreadable.items()}
    for store in home.stores:
        try:
            summaries.append({**summarise(store), "built_at": built_at(store)})
        except KDCacheError as error:
            damaged[redact(store.url)] = str(error)
    return summaries, damaged


def _row(summary: dict[str, Any]) -> tuple[str, ...]:
    dataset, views = summary["dataset"], summary["views"]
    return (
        summary["name"],
        f"{dataset['name']} {dataset['split']}",
        summary["teacher"]["name"],
        f"{views['crop_height_px']}x{views['crop_width_px']}",
        ",".join(summary["targets"]),
        f"{len(summary['complete_passes'])}/{summary['goal']}",
        size_text(summary["bytes"]),
        summary["built_at"],
    )
