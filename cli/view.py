"""`kdcache view`: entries of a store as one picture: crop, label, teacher's classes, their entropy, features.

kdcache view --count 6 --out sheet.png
kdcache view STORE --pass 1 --image frankfurt_000000_000294
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcache.cache.errors import KDCacheError, UsageError
from kdcache.cli import options
from kdcache.cli.options import option
from kdcache.cli.output import Console

if TYPE_CHECKING:
    from kdcache.cache.images.datasets import SegmentationDataset
    from kdcache.cache.images.sheet import SheetRow
    from kdcache.cache.store.reader import StoreReader

_TARGETS = ("logits", "features")  # what a sheet draws


@options.command(
    examples=[
        "kdcache view --count 6 --out sheet.png",
        "kdcache view STORE --pass 1 --image frankfurt_000000_000294",
    ]
)
@click.argument("store", required=False)
@options.home_option
@options.data_root_option
@option(
    "--pass",
    "pass_index",
    group="data",
    envvar="KDCACHE_VIEW_PASS",
    type=options.WHOLE,
    help="Which pass to draw from, counted from 0.",
    show_default="the first complete one",
)
@option(
    "--image",
    "image_ids",
    group="data",
    envvar="KDCACHE_VIEW_IMAGE",
    metavar="ID",
    multiple=True,
    help="Draw the view of this image. Give it again for more images.",
)
@option(
    "--count",
    group="data",
    type=options.COUNT,
    default=4,
    help="Without --image, draw the first N entries of the pass.",
)
@option("--out", group="output", metavar="FILE", default="sheet.png", help="The PNG file to write.")
@options.json_option
@click.pass_obj
def command(
    console: Console,
    store: str | None,
    home: str,
    data_root: str | None,
    pass_index: int | None,
    image_ids: tuple[str, ...],
    count: int,
    out: str,
) -> None:
    """Draw entries of STORE as one PNG sheet: crop, label, the teacher's classes, their entropy, features.

    STORE is a URL or a name under the home; without it, the newest store of the home.
    """
    from kdcache.cache.images.datasets import open_dataset
    from kdcache.cache.images.sheet import draw_sheet
    from kdcache.cache.store.reader import StoreReader
    from kdcache.cache.store.stored_images import StoredImages
    from kdcache.cli.home import describe, find_store

    found = find_store(home, store)
    targets = [name for name in _TARGETS if name in found.spec.targets]
    reader = StoreReader(found.url, targets, crops=True)
    if pass_index is None:
        pass_index = reader.passes[0]
    elif pass_index not in reader.passes:
        complete = ", ".join(map(str, reader.passes))
        raise UsageError(
            f"--pass {pass_index} is not complete in {describe(found)}", hint=f"complete: {complete}"
        )
    dataset = (
        StoredImages(reader)
        if reader.has_crops
        else open_dataset(found.spec.dataset.name, data_root, found.spec.dataset.split)
    )
    positions = (
        _positions(reader, pass_index, image_ids) if image_ids else list(range(min(count, reader.n_images)))
    )
    sheet = draw_sheet(
        list(_sheet_rows(console, reader, dataset, pass_index, positions)), dataset.classes, describe(found)
    )
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out, format="PNG")
    except OSError as error:
        raise KDCacheError(f"cannot write {out}: {error.strerror or error}", hint="--out FILE") from None
    if console.json:
        console.document({"out": out, "pass": pass_index, "positions": positions})
    else:
        console.line(out)


def _positions(reader: "StoreReader", pass_index: int, image_ids: tuple[str, ...]) -> list[int]:
    """Positions of the images in the pass."""
    from kdcache.cache.views.replay import parse_entry_row

    unknown = [image_id for image_id in image_ids if image_id not in reader.image_ids]
    if unknown:
        raise UsageError(
            f"--image {unknown[0]!r} is not in the store",
            hint=f"for example {', '.join(reader.image_ids[:3])}",
        )
    indices = [parse_entry_row(row).image_index for row in reader.rows(pass_index)]
    return [indices.index(reader.image_ids.index(image_id)) for image_id in image_ids]


def _sheet_rows(
    console: Console,
    reader: "StoreReader",
    dataset: "SegmentationDataset",
    pass_index: int,
    positions: list[int],
) -> "Iterator[SheetRow]":
    import torch

    from kdcache.cache.images.classes import IGNORE
    from kdcache.cache.images.sheet import SheetRow
    from kdcache.cache.views.replay import compare_digest, crop_digest, replay

    policy = reader.spec.views
    for position, entry in zip(positions, reader.entries(pass_index, positions), strict=True):
        index = entry.row.image_index
        image_id = reader.image_ids[index]
        if image_id != dataset.image_ids[index]:
            raise UsageError(f"{dataset.name} here has other images than the store", hint="--data-root DIR")
        crop = entry.crop or replay(entry.row.view, policy, dataset.image(index), dataset.label(index))
        if reason := compare_digest(entry.row.digest, crop_digest(crop)):
            console.note(f"warning: {image_id}: this crop is not the one that the teacher saw: {reason}")
        targets = {
            name: reader.codecs[name].decode(torch.from_numpy(codes)[None])[0].numpy()
            for name, codes in entry.codes.items()
        }
        yield SheetRow(
            caption=f"{image_id}, view {entry.row.view_index} (pass {pass_index}, position {position})",
            image=crop.image,
            valid_size=(crop.height, crop.width),
            label=crop.label if (crop.label != IGNORE).any() else None,
            logits=targets.get("logits"),
            features=targets.get("features"),
        )
