"""`kdcache push`, and what it shares with `pull`: copying a store."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcache.cache.errors import IncompleteError, UsageError
from kdcache.cli import options
from kdcache.cli.output import Console
from kdcache.distill.units import duration_text, size_text

if TYPE_CHECKING:
    from kdcache.cache.store.store import Store


@options.command(
    examples=[
        "kdcache push s3://bucket/stores/",
        "kdcache push NAME s3://bucket/stores/NAME --targets logits",
    ]
)
@click.argument("places", metavar="[STORE] URL", nargs=-1, required=True)
@options.transfer_options
@options.home_option
@options.json_option
@click.pass_obj
def command(
    console: Console,
    places: tuple[str, ...],
    targets: tuple[str, ...] | None,
    passes: slice | None,
    workers: int,
    home: str,
) -> None:
    """Copy STORE to URL, or the newest store of the home without STORE. A URL that ends with / is a home.

    Only what is missing is copied, so the same command continues an interrupted one. Every object is checked against the
    ledger, and nothing at URL is overwritten. Exit codes: 3 a pass of --passes is not complete yet, 11 something else is
    at URL, 12 an object of STORE is damaged.
    """
    from kdcache.cache.storage.urls import join_url, redact
    from kdcache.cache.views.crops import REPLAY
    from kdcache.cli.home import find_store

    if len(places) > 2:
        raise UsageError(f"push takes [STORE] URL, got {len(places)} places", hint="kdcache push --help")
    source = find_store(home, places[0] if len(places) == 2 else None)
    url = join_url(places[-1], source.spec.name) if places[-1].endswith("/") else places[-1]
    if source.spec.inputs != REPLAY:
        name = source.spec.dataset.name
        console.note(f"the store contains crops of {name}: the licence of {name} applies to it")
    transfer(console, "push", source, url, targets, passes, workers)
    if "://" in url:
        console.next("kdcache", "pull", redact(url), why="on another machine")
    else:
        console.next("kdcache", "pull", Path(url).absolute(), why="for a colleague who sees this folder")


def transfer(
    console: Console,
    label: str,
    source: "Store",
    url: str,
    targets: tuple[str, ...] | None,
    passes: slice | None,
    workers: int,
) -> None:
    """Copy a store and say what was copied."""
    from kdcache.cache.storage.urls import redact
    from kdcache.cache.store.opening import open_store
    from kdcache.cache.upkeep.transfer import copy_store
    from kdcache.cli.info import contents_text, summarise

    console.note(f"{label} from {redact(source.url)} to {redact(url)}")
    with console.progress(label, in_bytes=True) as progress:
        result = copy_store(source, url, targets=targets, passes=passes, workers=workers, progress=progress)
    summary = summarise(open_store(url))
    if console.json:
        console.document(
            {
                **summary,
                "source": redact(source.url),
                "objects_copied": result.objects_copied,
                "bytes_copied": result.bytes_copied,
                "objects_found": result.objects_found,
                "seconds": result.seconds,
            }
        )
    else:
        copied = f"{result.objects_copied} objects, {size_text(result.bytes_copied)} in {duration_text(result.seconds)}"
        console.fields(
            {
                "store": summary["url"],
                "contains": contents_text(summary),
                "copied": copied if result.objects_copied else "nothing, it was complete",
            }
        )
    if result.incomplete_passes:
        numbers = ", ".join(map(str, result.incomplete_passes))
        raise IncompleteError(
            f"passes {numbers} are not complete at {redact(source.url)}",
            hint=f"the same `kdcache {label}` copies the rest once they are built",
        )
