"""`kdcache pull`: copy a store from elsewhere, or some of its targets and passes."""

import click

from kdcache.cli import options
from kdcache.cli.output import Console


@options.command(
    examples=[
        "kdcache pull s3://bucket/stores/",
        "kdcache pull s3://bucket/stores/NAME --targets logits --passes 0:4",
    ]
)
@click.argument("url")
@click.argument("store", required=False)
@options.transfer_options
@options.home_option
@options.json_option
@click.pass_obj
def command(
    console: Console,
    url: str,
    store: str | None,
    targets: tuple[str, ...] | None,
    passes: slice | None,
    workers: int,
    home: str,
) -> None:
    """Copy the store at URL to STORE, or to its own name under the home. A URL that ends with / is a home: its newest store.

    With --targets or --passes you get a part that you can train from, and that a later pull completes. Only what is
    missing is copied, so the same command continues an interrupted one. Every object is checked against the ledger, and
    nothing is overwritten. Exit codes: 3 a pass of --passes is not complete yet, 11 something else is at STORE,
    12 an object at URL is damaged.
    """
    from kdcache.cache.storage.urls import join_url
    from kdcache.cache.store.opening import open_store
    from kdcache.cli.home import choose_store, distill_words, store_url
    from kdcache.cli.push import transfer

    source = choose_store(url) if url.endswith("/") else open_store(url)
    target = store_url(home, store) if store else join_url(home, source.spec.name)
    transfer(console, "pull", source, target, targets, passes, workers)
    copied = open_store(target)
    if copied.complete_passes():
        console.next("kdcache", "distill", *distill_words(copied))
