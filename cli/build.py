"""`kdcache build`: run a teacher once over augmented crops and store its outputs.

kdcache build --dataset streets:96x192:40 --weights teacher.safetensors --views 4     # a minute on a CPU
accelerate launch -m kdcache.cli build --dataset cityscapes --views 8
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from kdcache.cache.errors import UsageError
from kdcache.cli import options
from kdcache.cli.options import option
from kdcache.cli.output import Console
from kdcache.distill.units import duration_text, size_text

if TYPE_CHECKING:
    from accelerate import PartialState

    from kdcache.cache.build.build import BuildResult
    from kdcache.cache.build.builder import BuildOptions
    from kdcache.cache.build.disk_space import Outlook
    from kdcache.cache.build.plan import BuildPlan
    from kdcache.cache.images.datasets import SegmentationDataset
    from kdcache.cache.store.spec import StoreSpec
    from kdcache.cache.store.store import Store
    from kdcache.cache.teachers.teacher import Teacher

_CODEC = {"metavar": "CODEC", "default": "auto"}
_CODECS = "auto, or fp16, uniform[:STEP], delta[:STEP], pca:K[:STEP], dct[:STEP[:K]]."


@options.command()
@options.dataset_options(required=True, split="train")
@option(
    "--teacher",
    metavar="NAME",
    default="pspnet_resnet101",
    help="A network's name, or package.module:factory.",
)
@option(
    "--weights",
    metavar="PATH|URL|auto",
    default="auto",
    help="`auto`: the public checkpoint for the dataset.",
)
@option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    help="Of the teacher.",
)
@option("--views", type=options.COUNT, default=4, help="Views an image: passes over the dataset.")
@options.view_options(*options.VIEW_OPTIONS)
@option(
    "--targets",
    type=options.names,
    metavar="NAME,...",
    default="logits,features",
    help="Among logits, features, aux, backbone.",
)
@option("--logits-codec", **_CODEC, help=f"How logits are stored: {_CODECS}")
@option("--features-codec", **_CODEC, help="The same for features.")
@option("--aux-codec", **_CODEC, help="The same for the auxiliary head's logits.")
@option("--backbone-codec", **_CODEC, help="The same for the backbone's map.")
@option(
    "--max-kl",
    type=float,
    metavar="KL",
    help="What `auto` may lose: KL divergence of the stored logits, or of the teacher's classifier on the stored "
    "features.",
    show_default="0.001",
)
@option(
    "--for-methods",
    type=options.names,
    metavar="NAME,...",
    help="Methods by whose measure `auto` keeps that bound for logits: logit, cwd, dist.",
    show_default="logit",
)
@option(
    "--inputs",
    metavar="FORMAT",
    default="replay",
    help="replay: readers cut crops from the dataset again. jpeg[:QUALITY] or webp: the store keeps crops and labels, "
    "and training from it needs no dataset.",
)
@option("--seed", type=options.WHOLE, default=0, help="Seed of the views and their order.")
@option("--store", metavar="URL", help="The store.", show_default="named by its request, under the home")
@options.home_option
@option(
    "--batch-size", type=options.COUNT, default=8, help="Crops that the teacher takes at once, a process."
)
@option("--workers", type=options.COUNT, default=4, help="Threads that decode and cut crops.")
@option(
    "--threads",
    type=options.COUNT,
    help="Threads of the teacher's arithmetic on a CPU.",
    show_default="torch's",
)
@option(
    "--unit-entries",
    type=options.COUNT,
    help="Entries a unit.",
    show_default="so that a shard is at most 64 MiB",
)
@options.device_option
@option(
    "--force", is_flag=True, help="Go on although the teacher's outputs look wrong or the disk too small."
)
@option("--dry-run", is_flag=True, help="Say what would be written, from a few measured crops.")
@options.json_option
@click.pass_obj
def command(console: Console, /, **given: Any) -> None:
    """Run a teacher once over augmented crops and store its outputs.

    The same command again goes on from the last committed unit, or reports the store complete; more --views extend
    it. Exit codes: 0 complete, 3 units left to another builder, 11 --store is another store, 13 dataset or weights
    not found.
    """
    from kdcache.cache.build.build import build_store
    from kdcache.cache.storage.opening import open_objects
    from kdcache.cache.storage.urls import redact
    from kdcache.cache.store.opening import create_store

    request = open_request(given)
    if given["dry_run"]:
        plan = measure_request(console, request)
        _show_plan(console, redact(request.url), plan, open_objects(request.url).free_bytes())
        return
    store = create_store(request.url, request.spec, request.dataset.image_ids)
    console.note(f"store {redact(request.url)}")
    with console.progress("build") as progress:
        result = build_store(
            store,
            request.dataset,
            request.teacher,
            passes=request.passes,
            options=request.options,
            state=request.state,
            progress=progress,
            report=console.note,
            foresee=lambda outlook: console.note(_outlook_text(outlook)),
        )
    _show_result(console, store, request.passes, result)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A store that the options ask for, with its dataset and its teacher at hand."""

    dataset: "SegmentationDataset"
    teacher: "Teacher"
    spec: "StoreSpec"
    url: str
    passes: int
    options: "BuildOptions"
    state: "PartialState"


def open_request(given: dict[str, Any]) -> Request:
    """Open the dataset, load the teacher, and say which store that makes; nothing is written."""
    import torch
    from accelerate import PartialState

    from kdcache.cache.build.build import plan_store
    from kdcache.cache.build.builder import BuildOptions
    from kdcache.cache.codecs.registry import canonical_request
    from kdcache.cache.images.datasets import open_dataset
    from kdcache.cache.storage.urls import join_url
    from kdcache.cache.store.spec import check_target_names
    from kdcache.cache.teachers.teacher import load_teacher
    from kdcache.cache.views.crops import canonical_inputs
    from kdcache.cache.views.policy import view_policy

    if given["threads"]:
        torch.set_num_threads(given["threads"])
    check_target_names(given["targets"])  # before anything that takes time
    inputs = canonical_inputs(given["inputs"])
    requests = {name: given[f"{name}_codec"] for name in given["targets"]}
    targets = {name: canonical_request(request) for name, request in _with_promise(requests, given).items()}
    state = PartialState(cpu=given["device"] == "cpu")
    dataset = open_dataset(given["dataset"], given["data_root"], given["split"])
    policy = view_policy(dataset.name, **options.view_overrides(given))
    teacher = load_teacher(
        given["teacher"],
        weights=given["weights"],
        dataset_name=dataset.name,
        classes=len(dataset.classes.names),
        device=state.device,
        precision=given["precision"],
    )
    spec = plan_store(
        dataset,
        teacher,
        policy,
        seed=given["seed"],
        targets=targets,
        inputs=inputs,
        unit_entries=given["unit_entries"],
    )
    return Request(
        dataset=dataset,
        teacher=teacher,
        spec=spec,
        url=given["store"] or join_url(given["home"], spec.name),
        passes=given["views"],
        options=BuildOptions(
            batch_size=given["batch_size"], decode_threads=given["workers"], force=given["force"]
        ),
        state=state,
    )


def measure_request(console: Console, request: Request) -> "BuildPlan":
    """What building it would write, and how long that would take, from a few measured crops; nothing is left."""
    from kdcache.cache.build.plan import measure_plan
    from kdcache.cache.store.opening import find_store_of

    with console.progress("measure") as progress:
        return measure_plan(
            request.spec,
            request.dataset,
            request.teacher,
            passes=request.passes,
            options=request.options,
            store=find_store_of(request.spec, request.url),
            progress=progress,
            report=console.note,
        )


def _with_promise(requests: dict[str, str], given: dict[str, Any]) -> dict[str, str]:
    """The codec requests, `auto` with what --max-kl and --for-methods say of it."""
    from kdcache.cache.codecs.choose import DEFAULT_MAX_KL, DEFAULT_METHODS

    for name in ("max_kl", "for_methods"):
        if given[name] is not None and "auto" not in requests.values():
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is for the codec auto, and none is", hint=f"leave {option} out")
    max_kl = DEFAULT_MAX_KL if given["max_kl"] is None else given["max_kl"]
    methods = ",".join(given["for_methods"] or DEFAULT_METHODS)
    return {
        name: f"auto:{max_kl!r}:{methods}" if request == "auto" else request
        for name, request in requests.items()
    }


def _outlook_text(outlook: "Outlook") -> str:
    """The short form of an estimate, in one line."""
    left = f"left: {outlook.entries_left} entries, {size_text(outlook.bytes_left)}"
    time = "" if outlook.seconds_left is None else f", about {duration_text(outlook.seconds_left)}"
    free = "" if outlook.free_bytes is None else f"; {size_text(outlook.free_bytes)} are free"
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
            "units": f"{plan.units}, {plan.units_committed} of them there already",
            "size": size_text(plan.total_bytes),
            "a view": "\n".join(f"{name}: {size_text(size)}" for name, size in sizes.items()),
            "memory": f"{size_text(plan.unit_bytes)} a unit in flight",
            "left": f"{left} with one process" if plan.entries_left else "nothing: it is complete",
            "free": free_text(plan.bytes_left, free_bytes),
        }
    )


def free_text(needed_bytes: int, free_bytes: int | None) -> str:
    """What a disk has left, and whether that is enough."""
    if free_bytes is None:
        return "not said by this storage"
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
            "holds": f"{passes}, {size_text(summary['bytes'])}",
            "built": built if result.units_built or not complete else "nothing, it was complete",
        }
    )
