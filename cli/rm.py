"""`kdcache rm`: remove a store, after a question."""

import sys

import click

from kdcache.cache.errors import KDCacheError, UsageError
from kdcache.cli import options
from kdcache.cli.options import option
from kdcache.cli.output import Console
from kdcache.distill.units import duration_text, size_text


@options.command(examples=["kdcache rm NAME", "kdcache rm s3://bucket/stores/NAME --yes"])
@click.argument("store")
@option("--yes", is_flag=True, help="Remove it without asking.")
@option("--force", is_flag=True, help="Remove it even if somebody may be building it.")
@options.home_option
@options.json_option
@click.pass_obj
def command(console: Console, store: str, yes: bool, force: bool, home: str) -> None:
    """Remove STORE, a URL or a name under the home, after a question. The same command finishes an interrupted one.

    It refuses while a lease or a commit is younger than ten minutes. Without a terminal it needs --yes.
    """
    from kdcache.cache.storage.urls import redact
    from kdcache.cache.upkeep.removal import plan_removal
    from kdcache.cli.home import store_url

    url = store_url(home, store)
    removal = plan_removal(url)
    if removal.is_recent and not force:
        raise UsageError(
            f"{redact(url)}: its newest lease or commit is {duration_text(removal.newest_age_s or 0.0)} old:"
            " somebody may be building it",
            hint="wait until the build has ended, or --force",
        )
    entries = "the rest of a store" if removal.entries is None else f"{removal.entries} entries"
    uploads = f", {len(removal.uploads)} unfinished uploads" if removal.uploads else ""
    console.note(
        f"{redact(url)}: {entries}, {len(removal.stored)} objects{uploads}, {size_text(removal.bytes)}"
    )
    if not yes:
        _ask()
    with console.progress("rm") as progress:
        removal.carry_out(progress)
    if console.json:
        console.document(
            {
                "url": redact(url),
                "entries": removal.entries,
                "objects": len(removal.stored),
                "uploads": len(removal.uploads),
                "bytes": removal.bytes,
            }
        )
    else:
        console.line(f"removed {redact(url)}")


def _ask() -> None:
    if not sys.stdin.isatty():
        raise UsageError("rm asks before it removes, and this is not a terminal", hint="--yes")
    if not click.confirm("remove it?", default=False, err=True):
        raise KDCacheError("nothing was removed")
