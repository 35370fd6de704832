"""`kdcache pull`: a store from elsewhere, or some of its targets and passes."""

import click

from kdcache.cli import options
from kdcache.cli.output import Console


@options.command()
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
    """Copy the store at URL to STORE, by default of its own name under the home. A URL that ends with / is a home.

    With --targets or --passes a part of it, which is a store to train from, and which a later pull completes. Only
    what is missing is copied, and the same command again goes on from there. Every object is checked against the
    ledger; nothing that stands is written over. Exit codes: 3 a pass of --passes is not complete yet, 11 something
    else stands at STORE, 12 an object at URL is damaged.
    """
    from kdcache.cache.storage.urls import join_url
    from kdcache.cache.store.opening import open_store
    from kdcache.cli.home import choose_store, store_url
    from kdcache.cli.push import transfer

    source = choose_store(url) if url.endswith("/") else open_store(url)
    target = store_url(home, store) if store else join_url(home, source.spec.name)
    transfer(console, "pull", source, target, targets, passes, workers)
