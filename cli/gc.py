"""`kdcache gc`: remove what interrupted builders left, once it is old."""

import click

from kdcache.cli import options
from kdcache.cli.options import option
from kdcache.cli.output import Console
from kdcache.distill.units import duration_text, size_text


@options.command(examples=["kdcache gc --dry-run", "kdcache gc STORE --grace 2h"])
@click.argument("store", required=False)
@option(
    "--grace",
    type=options.duration,
    metavar="TIME",
    default="24h",
    help="Keep everything that is younger than this.",
)
@option("--dry-run", is_flag=True, help="List what would be removed, and remove nothing.")
@options.home_option
@options.json_option
@click.pass_obj
def command(console: Console, store: str | None, grace: float, dry_run: bool, home: str) -> None:
    """Remove old leases, probes, temporary files and unfinished uploads of STORE, or of the whole home without it.

    Targets, inputs and records are kept, committed or not. Ages are measured by the storage's clock.
    """
    from kdcache.cache.storage.urls import redact
    from kdcache.cache.upkeep.garbage import find_garbage, remove_garbage
    from kdcache.cli.home import store_url

    url = store_url(home, store) if store else home
    garbage = find_garbage(url, grace)
    if not dry_run:
        remove_garbage(url, garbage)
    total = sum(each.size for each in garbage)
    if console.json:
        found = [
            {"kind": each.kind, "path": each.path, "bytes": each.size, "age_s": each.age_s}
            for each in garbage
        ]
        console.document({"url": redact(url), "removed": not dry_run, "bytes": total, "garbage": found})
        return
    if garbage:
        console.table(
            ("kind", "path", "size", "age"),
            [(each.kind, each.path, size_text(each.size), duration_text(each.age_s)) for each in garbage],
        )
    verb = "would be removed" if dry_run else "removed"
    console.line(f"{verb}: {len(garbage)} objects, {size_text(total)}")
    if dry_run and garbage:
        console.next("kdcache", "gc", *(word for word in console.args if word != "--dry-run"))
