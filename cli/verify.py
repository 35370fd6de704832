"""`kdcache verify`: compare a store's ledger with its objects, and make damaged ones again.

kdcache verify STORE --deep                                       # every object hashed and decoded
kdcache verify STORE --recompute 16 --weights teacher.safetensors # against its teacher run again
kdcache verify STORE --deep --repair --data-root DIR
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli import options
from kdcache.cli.options import option
from kdcache.cli.output import Console
from kdcache.distill.units import size_text

if TYPE_CHECKING:
    from kdcache.cache.upkeep.recompute import Recomputation
    from kdcache.cache.upkeep.repair import Repaired
    from kdcache.cache.upkeep.verify import Verification

_SHOWN = 20  # damaged objects that are named without --json


@options.command(
    examples=[
        "kdcache verify",
        "kdcache verify STORE --deep --repair --data-root DIR",
        "kdcache verify STORE --recompute 16 --weights teacher.safetensors",
    ]
)
@click.argument("store", required=False)
@options.home_option
@option(
    "--deep", is_flag=True, help="Read, hash and decode every object, where otherwise sizes are compared."
)
@option(
    "--recompute",
    type=options.WHOLE,
    metavar="N",
    default=0,
    help="Run the teacher again on N entries, and compare its outputs with the stored ones.",
)
@option(
    "--repair",
    is_flag=True,
    help="Make damaged objects again, from the dataset and the teacher. Nobody may be building the store.",
)
@option("--force", is_flag=True, help="Repair even though builders left leases.")
@options.origin_options
@option(
    "--workers", group="machine", type=options.COUNT, default=8, help="Number of threads that read objects."
)
@options.device_option
@options.json_option
@click.pass_obj
def command(console: Console, /, **given: Any) -> int:
    """Check every object of STORE against its ledger, and repair what is damaged.

    STORE is a URL or a name under the home; without it, the newest store of the home. Exit codes: 0 clean, or all
    repaired, also where the store is not complete yet; 11 crops or teacher here are not the store's; 12 damage is left.
    """
    from kdcache.cache.upkeep.verify import verify_store
    from kdcache.cli.home import find_url

    url = find_url(given["home"], given["store"])

    def verify() -> "Verification":
        with console.progress("verify") as progress:
            return verify_store(url, deep=given["deep"], threads=given["workers"], progress=progress)

    found, repaired = verify(), None
    if given["repair"] and not found.is_clean:
        repaired = _repair(console, url, found, given)
        found = verify()
    recomputed = _recompute(console, url, given) if given["recompute"] and found.is_clean else None
    outcome = _Outcome(url, found, repaired, recomputed)
    if console.json:
        console.document(outcome.to_dict())
    else:
        outcome.show(console)
    if repaired is None and not found.is_clean:
        words = options.typed(console.args, command, without={"repair", "recompute"})
        console.next("kdcache", "verify", url, *words, "--repair", why="makes them again, with the teacher")
    return outcome.exit_code


@dataclass(frozen=True, slots=True)
class _Outcome:
    url: str
    found: "Verification"  # after the repair, where there was one
    repaired: "Repaired | None"
    recomputed: "Recomputation | None"

    @property
    def exit_code(self) -> int:
        from kdcache.cache.errors import StoreDamagedError, StoreMismatchError

        differences = self.recomputed.targets.values() if self.recomputed else ()
        if not self.found.is_clean or not all(found.is_the_teachers for found in differences):
            return StoreDamagedError.exit_code
        return StoreMismatchError.exit_code if self.recomputed and self.recomputed.other_crops else 0

    def to_dict(self) -> dict[str, Any]:
        from kdcache.cache.storage.urls import redact

        repaired, found = self.repaired, self.found
        return {
            "url": redact(self.url),
            "clean": found.is_clean,
            "complete": found.is_complete,
            "objects": found.objects,
            "bytes": found.bytes,
            "units": found.units,
            "orphans": found.orphans,
            "leftovers": found.leftovers,
            "damage": [{"path": damage.path, "what": damage.what} for damage in found.damage],
            "repaired": repaired
            and {
                "rewritten": repaired.rewritten,
                "renewed": [list(place) for place in repaired.renewed],
                "left": repaired.left,
            },
            "recomputed": self.recomputed and self.recomputed.to_dict(),
        }

    def show(self, console: Console) -> None:
        found = self.found
        console.line(
            f"{found.objects} objects, {found.units} units, {size_text(found.bytes)} of shards; "
            + ("clean" if found.is_clean else f"{len(found.damage)} damaged")
            + ("" if found.is_complete or not found.is_clean else ", not complete yet")
        )
        if found.orphans or found.leftovers:
            console.line(
                f"{found.orphans} shards of units that are not committed, {found.leftovers} leftovers: not damage"
            )
        for damage in found.damage[:_SHOWN]:
            console.line(f"damaged: {damage}")
        if len(found.damage) > _SHOWN:
            console.line(f"and {len(found.damage) - _SHOWN} more: --json lists them all")
        if self.repaired is not None:
            console.line(
                f"rewritten: {len(self.repaired.rewritten)} objects; "
                f"{len(self.repaired.renewed)} units have other bytes now, and runs pinned to the old ones stop"
            )
            for path, why in self.repaired.left.items():
                console.line(f"left: {path}: {why}")
        if self.recomputed is not None:
            _show_recomputed(console, self.recomputed)


def _show_recomputed(console: Console, recomputed: "Recomputation") -> None:
    other = recomputed.other_crops
    console.line(f"{recomputed.entries} entries computed again, {len(other)} of them from other crops")
    for line in other[:_SHOWN]:
        console.line(f"other crop: {line}")
    console.table(
        ("target", "largest error / bound", "relative error", "equal codes", "the teacher's"),
        [
            (
                name,
                f"{found.largest_in_bounds:.3f}",
                f"{found.relative_error:.1e}",
                f"{found.equal_codes:.2%}",
                "yes" if found.is_the_teachers else "no",
            )
            for name, found in recomputed.targets.items()
        ],
    )


def _repair(console: Console, url: str, found: "Verification", given: dict[str, Any]) -> "Repaired":
    from functools import cache

    from accelerate import PartialState

    from kdcache.cache.storage.opening import open_objects
    from kdcache.cache.store.opening import read_spec
    from kdcache.cache.store.store import Store
    from kdcache.cache.upkeep.repair import Origin, repair_store
    from kdcache.cli.origins import open_images, open_teacher

    objects = open_objects(url)
    store = Store(url, objects, read_spec(objects), ())  # its images may be what is damaged
    device = PartialState(cpu=given["device"] == "cpu").device
    origin = Origin(
        images=cache(lambda: open_images(store.spec, given["data_root"])),
        teacher=cache(lambda: open_teacher(store.spec, given["teacher"], given["weights"], device)),
    )
    with console.progress("repair") as progress:
        return repair_store(store, found, origin, force=given["force"], progress=progress)


def _recompute(console: Console, url: str, given: dict[str, Any]) -> "Recomputation":
    from accelerate import PartialState

    from kdcache.cache.store.opening import open_store
    from kdcache.cache.store.reader import StoreReader
    from kdcache.cache.store.stored_images import StoredImages
    from kdcache.cache.upkeep.recompute import recompute_entries
    from kdcache.cli.origins import open_images, open_teacher

    store = open_store(url)
    reader = StoreReader(url, sorted(store.spec.targets), crops=True)
    images = StoredImages(reader) if reader.has_crops else open_images(store.spec, given["data_root"])
    device = PartialState(cpu=given["device"] == "cpu").device
    teacher = open_teacher(store.spec, given["teacher"], given["weights"], device)
    with console.progress("recompute") as progress:
        return recompute_entries(
            reader,
            images,
            teacher,
            given["recompute"],
            losses=store.calibration.fidelity,
            progress=progress,
        )
