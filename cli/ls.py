"""`kdcache ls`: the stores of the home."""

import click

from kdcache.cli import options
from kdcache.cli.output import Console, size_text


@options.command()
@options.home_option
@options.json_option
@click.pass_obj
def command(console: Console, home: str) -> None:
    """List the stores of the home."""
    from kdcache.cache.objects import redact
    from kdcache.cache.store import list_stores
    from kdcache.cli.home import built_at
    from kdcache.cli.info import summarise

    stores = list_stores(home)
    summaries = [{**summarise(store), "built_at": built_at(store)} for store in stores]
    if console.json:
        console.document(summaries)
        return
    if not stores:
        console.note(f"no stores under {redact(home)}; `kdcache build --dataset NAME` begins one")
        return
    console.table(
        ("store", "dataset", "teacher", "crop", "targets", "passes", "size", "built"),
        [
            (
                summary["name"],
                f"{summary['dataset']['name']} {summary['dataset']['split']}",
                summary["teacher"]["name"],
                f"{summary['views']['crop_height_px']}x{summary['views']['crop_width_px']}",
                ",".join(summary["targets"]),
                f"{len(summary['complete_passes'])}/{summary['goal']}",
                size_text(summary["bytes"]),
                summary["built_at"],
            )
            for summary in summaries
        ],
    )
