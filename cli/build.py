"""`kdcache build`: run a teacher once over augmented crops and store its outputs.

kdcache build --dataset streets:96x192:40 --weights teacher.safetensors --views 4     # a minute on a CPU
accelerate launch -m kdcache.cli build --dataset cityscapes --views 8
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli import names, options
from kdcache.cli.options import option
from kdcache.cli.output import Console
from kdcache.cli.request import measure_request, open_request
from kdcache.distill.units import duration_text, size_text

if TYPE_CHECKING:
    from kdcache.cache.build.build import BuildResult
    from kdcache.cache.build.disk_space import RemainingWork
    from kdcache.cache.build.plan import BuildPlan
    from kdcache.cache.store.store import Store


def codec_option(flag: str, what: str) -> Callable[[options.Decorated], options.Decorated]:
    """How one target is stored."""
    return option(flag, group="stored", metavar="CODEC", default="auto", help=what)


def kept_for(text: str) -> tuple[str, ...]:
    """Methods by whose measure `auto` can be bound."""
    check = options.one_of("method to choose a codec for", names.JUDGED_METHODS)
    return tuple(check(name) for name in options.names(text))


@options.command(
    examples=[
        "kdcache build --dataset cityscapes --dry-run",
        "kdcache build --dataset cityscapes --views 8 --targets logits",
        "kdcache build --dataset streets:96x192:40 --weights teacher.safetensors",
        "accelerate launch -m kdcache.cli build --dataset cityscapes",
    ]
)
@options.dataset_options(required=True, split="train")
@option(
    "--teacher",
    group="data",
    metavar="NAME",
    type=options.teacher_name,
    default="pspnet_resnet101",
    help=f"The teacher: {names.listed(names.NETWORKS)}; or your own factory, as package.module:function.",
)
@option(
    "--weights",
    group="data",
    metavar="PATH|URL|auto",
    default="auto",
    help="The teacher's weights: a file, a URL, or `auto` for the public checkpoint for the dataset.",
)
@option(
    "--precision",
    group="machine",
    type=options.PRECISION,
    default="float32",
    help="Precision of the teacher's arithmetic.",
)
@option(
    "--views",
    group="views",
    type=options.COUNT,
    default=4,
    help="Number of views of each image. One view of every image is a pass.",
)
@options.view_options(*options.VIEW_OPTIONS)
@option("--seed", group="views", type=options.WHOLE, default=0, help="Seed of the views and of their order.")
@option(
    "--targets",
    group="stored",
    type=options.names,
    metavar="NAME,...",
    default="logits,features",
    help=f"Outputs of the teacher to store, among {names.listed(names.TARGETS)}.",
)
@codec_option(
    "--logits-codec",
    "How logits are compressed. `auto` measures which codec is the smallest within --max-kl. Others: "
    "fp16, uniform[:STEP], delta[:STEP], pca:K[:STEP], dct[:STEP[:K]], dct-range[:STEP[:K]].",
)
@codec_option("--features-codec", "The same for features.")
@codec_option("--aux-codec", "The same for the logits of the auxiliary head.")
@codec_option("--backbone-codec", "The same for the output of the backbone.")
@option(
    "--max-kl",
    group="stored",
    type=float,
    metavar="KL",
    help="Largest loss that `auto` may cause: the KL divergence between exact and stored logits, or between the "
    "teacher's classifier on exact and on stored features.",
    show_default="0.001",
)
@option(
    "--for-methods",
    group="stored",
    type=kept_for,
    metavar="NAME,...",
    help="Methods that will learn from the logits. `auto` keeps the bound by the measure of each of them: "
    f"{names.listed(names.JUDGED_METHODS)}.",
    show_default="logit",
)
@option(
    "--inputs",
    group="stored",
    metavar="FORMAT",
    default="replay",
    help="Where training finds the crops. `replay`: it cuts them out of the dataset again. `jpeg[:QUALITY]` or `webp`: "
    "the store keeps crops and labels, and training needs no dataset.",
)
@option(
    "--unit-entries",
    group="stored",
    type=options.COUNT,
    help="Number of entries in a unit, which is what builders share and readers fetch.",
    show_default="at most 64, in shards of at most 64 MiB",
)
@option(
    "--store",
    group="data",
    metavar="URL",
    help="Folder or URL of the store.",
    show_default="under the home, named by what was asked for",
)
@options.home_option
@option(
    "--batch-size",
    group="machine",
    type=options.COUNT,
    default=8,
    help="Number of crops that the teacher takes at once, in each process.",
)
@option("--workers", group="machine", type=options.COUNT, default=4, help="Number of threads that cut crops.")
@option(
    "--threads",
    group="machine",
    type=options.COUNT,
    help="Number of threads of the teacher's arithmetic on a CPU.",
    show_default="torch's",
)
@options.device_option
@option(
    "--image-cache", group="machine", metavar="off|auto|DIR", default="auto", help=options.IMAGE_CACHE_HELP
)
@option(
    "--cache-limit",
    group="machine",
    type=options.byte_count,
    metavar="SIZE",
    default="50GB",
    help="Disk space on this host for decoded images, and for shards of stores that are elsewhere.",
)
@option(
    "--force",
    is_flag=True,
    help="Continue even if the teacher's outputs look wrong or the disk looks too small.",
)
@option("--dry-run", is_flag=True, help="Measure a few crops, say what would be written, and write nothing.")
@options.json_option
@click.pass_obj
def command(console: Console, /, **given: Any) -> None:
    """Run a teacher once over augmented crops and store its outputs.

    If a build was interrupted, the same command continues from the last committed unit. A larger --views extends a
    complete store. Exit codes: 0 complete, 3 some units are left to another builder, 11 --store is another store,
    13 dataset or weights not found.
    """
    console.starting(f"loading PyTorch and the teacher {given['teacher']} ...")
    from kdcache.cache.build.build import build_store
    from kdcache.cache.images.decoded import keep_decoded
    from kdcache.cache.storage.opening import open_objects
    from kdcache.cache.storage.urls import redact
    from kdcache.cache.store.opening import create_store

    request = open_request(given)
    if given["dry_run"]:
        plan = measure_request(console, request)
        _show_plan(console, redact(request.url), plan, open_objects(request.url).free_bytes())
        console.next("kdcache", "build", *options.typed(console.args, command, without={"dry_run"}))
        return
    store = create_store(request.url, request.spec, request.dataset.image_ids)
    console.note(f"store {redact(request.url)}")
    images = keep_decoded(request.dataset, given["image_cache"], limit_bytes=given["cache_limit"])
    with console.progress("build") as progress:
        result = build_store(
            store,
            images,
            request.teacher,
            passes=request.passes,
            options=request.options,
            state=request.state,
            progress=progress,
            report=console.note,
            on_remaining=lambda remaining: console.note(_remaining_text(remaining)),
        )
    _show_result(console, store, request.passes, result)
    if store.complete_passes():
        from kdcache.cli.home import distill_words

        console.next("kdcache", "distill", *distill_words(store, given["data_root"]))


def _remaining_text(remaining: "RemainingWork") -> str:
    """The short form of an estimate, in one line."""
    left = f"left: {remaining.entries_left} entries, {size_text(remaining.bytes_left)}"
    time = "" if remaining.seconds_left is None else f", about {duration_text(remaining.seconds_left)}"
    free = "" if remaining.free_bytes is None else f"; {size_text(remaining.free_bytes)} are free"
    return left + time + free


def _show_plan(console: Console, url: str, plan: "BuildPlan", free_bytes: int | None) -> None:
    sizes = dict(plan.bytes_per_entry)
    if console.json:
        console.document(
            {
                "store": url,
                "entries": plan.entries,
                "units": plan.units,
                "units_committed": plan.units_committed,
                "bytes": plan.total_bytes,
                "bytes_left": plan.bytes_left,
                "free_bytes": free_bytes,
                "bytes_per_view": sizes,
                "unit_memory_bytes": plan.unit_bytes,
                "seconds_left": plan.seconds_left,
            }
        )
        return
    left = (
        f"{plan.entries_left} entries, {size_text(plan.bytes_left)}, about {duration_text(plan.seconds_left)}"
    )
    console.fields(
        {
            "store": url,
            "entries": plan.entries,
            "units": f"{plan.units}, of which {plan.units_committed} are built",
            "size": size_text(plan.total_bytes),
            "a view": "\n".join(f"{name}: {size_text(size)}" for name, size in sizes.items()),
            "memory": f"{size_text(plan.unit_bytes)} for each unit in flight",
            "left": f"{left} with one process" if plan.entries_left else "nothing: the store is complete",
            "free": free_text(plan.bytes_left, free_bytes),
        }
    )


def free_text(needed_bytes: int, free_bytes: int | None) -> str:
    """What a disk has left, and whether that is enough."""
    if free_bytes is None:
        return "unknown: this storage does not report it"
    return size_text(free_bytes) + ("" if needed_bytes <= free_bytes else ": not enough, `build` will refuse")


def _show_result(console: Console, store: "Store", views: int, result: "BuildResult") -> None:
    from kdcache.cli.info import summarise

    summary = summarise(store)
    complete = set(range(views)) <= set(summary["complete_passes"])
    if console.json:
        own = {
            "units_built": result.units_built,
            "entries_built": result.entries_built,
            "seconds": result.seconds,
        }
        console.document({**summary, "complete": complete, **own})
        return
    passes = f"{len(summary['complete_passes'])} of {summary['goal']} passes complete"
    built = (
        f"{result.entries_built} entries in {duration_text(result.seconds)}"
        if result.units_built
        else "nothing"
    )
    console.fields(
        {
            "store": summary["url"],
            "contains": f"{passes}, {size_text(summary['bytes'])}",
            "built": built if result.units_built or not complete else "nothing, it was complete",
        }
    )
