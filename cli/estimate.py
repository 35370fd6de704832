"""`kdcache estimate`: what a store costs to build, to keep and to read, and when it pays off.

    kdcache estimate --dataset cityscapes --views 8 --home s3://bucket/stores
    kdcache estimate --dataset streets:96x192:40 --weights teacher.safetensors --force --student-batch-size 2

It takes the options of `kdcache build`, runs the teacher over a few dozen crops, writes and removes a small object
under the home, and trains the student for a few steps in memory.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kdcache.cache.errors import UsageError
from kdcache.cli import names, options
from kdcache.cli.build import command as build_command
from kdcache.cli.build import free_text
from kdcache.cli.options import option
from kdcache.cli.output import Console
from kdcache.cli.request import measure_request, open_request
from kdcache.distill.config import DEFAULT_STEPS, MIXED_PRECISIONS
from kdcache.distill.units import duration_text, size_text

if TYPE_CHECKING:
    from kdcache.cli.request import Request
    from kdcache.distill.study.estimate import Estimate

_USD = click.FloatRange(min=0)


def _price(flag: str, default: float, text: str) -> Callable[[options.Decorated], options.Decorated]:
    return option(flag, group="prices", type=_USD, metavar="USD", default=default, help=text)


@options.command(
    examples=[
        "kdcache estimate --dataset cityscapes --views 8",
        "kdcache estimate --dataset cityscapes --home s3://bucket/stores --runs 10 --steps 80000",
    ]
)
@option(
    "--student",
    group="student",
    metavar="NAME",
    type=options.student_name,
    default="pspnet_resnet18",
    help=f"The network that you will train: {names.listed(names.NETWORKS)}.",
)
@option(
    "--student-batch-size",
    group="student",
    type=options.COUNT,
    default=8,
    help="Number of crops in a step of the student.",
)
@option(
    "--method",
    group="student",
    metavar="NAME",
    type=options.method_name,
    help=f"The method that you will train it with: {names.listed(names.METHODS)}.",
    show_default="the one that uses the most of --targets",
)
@option(
    "--mixed-precision",
    group="student",
    type=click.Choice(MIXED_PRECISIONS),
    default="no",
    help="Precision of the student's arithmetic; `no` is float32.",
)
@option(
    "--steps",
    group="length",
    type=options.COUNT,
    default=DEFAULT_STEPS,
    help="Number of steps of each training run that you plan.",
)
@option(
    "--runs",
    group="length",
    type=options.COUNT,
    default=1,
    help="Number of training runs that will learn from the store.",
)
@_price(
    "--usd-gb-month",
    0.023,
    "Price of keeping a GB (2^30 bytes) for a month. Default: S3 Standard in us-east-1.",
)
@_price("--usd-1000-gets", 0.0004, "Price of 1000 GET requests. Default: S3 Standard in us-east-1.")
@_price("--usd-gb-traffic", 0.0, "Price of reading a GB. Default: nothing, as within one region.")
@click.pass_obj
def command(console: Console, /, **given: Any) -> None:
    """Measure what a store costs to build, to keep and to read, before you build it.

    It runs the teacher on a few dozen crops, reads and writes a small object in the disk or bucket, and trains the
    student for a few steps, all on this machine. It leaves nothing behind. If the store is partly built, the time is that
    of the rest. The options of `kdcache build` mean the same here.
    """
    console.starting(f"loading PyTorch and the teacher {given['teacher']} ...")
    from kdcache.cache.storage.urls import redact
    from kdcache.distill.study.trial import check_student, choose_method

    method = choose_method(given["method"], given["targets"])  # before anything that takes time
    request = open_request(given)
    if request.state.num_processes > 1:
        raise UsageError("an estimate runs in one process", hint="run it without `accelerate launch`")
    check_student(given["student"], len(request.dataset.classes.names), given["student_batch_size"])
    estimate = _measure(console, request, method, given)
    if console.json:
        console.document(_document(redact(request.url), estimate))
    else:
        _show(console, redact(request.url), estimate)
    console.next("kdcache", "build", *options.typed(console.args, command, into=build_command, without=_OWN))


# The options of `build`, in front of those above. Those that both have by name (--seed) are `build`'s.
_OWN = {parameter.name for parameter in command.params if parameter.name != "json"}
command.params[:0] = [parameter for parameter in build_command.params if parameter.name != "dry_run"]


def _measure(console: Console, request: "Request", method: str, given: dict[str, Any]) -> "Estimate":
    """The build, the storage and the student, one after the other, so that none slows another."""
    from kdcache.cache.images.decoded import plan_decoded
    from kdcache.cache.storage.opening import open_objects
    from kdcache.cache.storage.speed import measure_storage
    from kdcache.cache.storage.urls import redact
    from kdcache.distill.study.estimate import Estimate, Prices
    from kdcache.distill.study.trial import time_student

    spec, place = request.spec, given["store"] or given["home"]
    plan = measure_request(console, request)
    console.note(f"measuring the storage at {redact(place)}")
    row_bytes = sum(plan.bytes_per_entry.values()) // len(plan.bytes_per_entry)
    storage = measure_storage(
        place,
        object_bytes=row_bytes * min(spec.unit_entries, spec.dataset.images),
        piece_bytes=row_bytes,
    )
    console.note(f"measuring {given['student']} with method {method}")
    trial = time_student(
        request.dataset,
        spec,
        request.teacher,
        plan.codecs,
        student=given["student"],
        method=method,
        batch_size=given["student_batch_size"],
        mixed_precision=given["mixed_precision"],
    )
    return Estimate(
        spec=spec,
        plan=plan,
        storage=storage,
        trial=trial,
        run_steps=given["steps"],
        runs=given["runs"],
        prices=Prices(
            gb_month=given["usd_gb_month"],
            gets_1000=given["usd_1000_gets"],
            gb_traffic=given["usd_gb_traffic"],
        ),
        free_bytes=open_objects(request.url).free_bytes(),
        images=plan_decoded(request.dataset, given["image_cache"], limit_bytes=given["cache_limit"]),
    )


def _document(url: str, estimate: "Estimate") -> dict[str, Any]:
    plan, storage, trial = estimate.plan, estimate.storage, estimate.trial
    return {
        "store": url,
        "entries": plan.entries,
        "entries_left": plan.entries_left,
        "units": plan.units,
        "units_committed": plan.units_committed,
        "bytes": plan.total_bytes,
        "bytes_left": plan.bytes_left,
        "bytes_by_array": {name: size * plan.entries for name, size in plan.bytes_per_entry.items()},
        "bytes_per_view": dict(plan.bytes_per_entry),
        "free_bytes": estimate.free_bytes,
        "fits": estimate.fits,
        "unit_memory_bytes": plan.unit_bytes,
        "build": {
            "seconds": estimate.build_s,
            "calibration_s": plan.calibration_s,
            "seconds_per_batch": plan.seconds_per_batch,
            "batches_left": plan.batches_left,
        },
        "storage": {
            "write_bytes_per_s": storage.write_bytes_per_s,
            "read_bytes_per_s": storage.read_bytes_per_s,
            "object_bytes": storage.object_bytes,
            "piece_bytes": storage.piece_bytes,
        },
        "student": {
            "name": trial.student,
            "method": trial.method,
            "batch_size": trial.batch_size,
            "step_s": trial.step_s,
            "teacher_s": trial.teacher_s,
        },
        "images": estimate.images
        and {"decoded_bytes": estimate.images.decoded_bytes, "kept": estimate.images.is_kept},
        "read": {
            "bytes_per_view": estimate.read_bytes_per_view,
            "needed_bytes_per_s": estimate.needed_bytes_per_s,
            "given_bytes_per_s": storage.read_bytes_per_s,
            "readers": estimate.readers,
        },
        "paid_back": {
            "steps": estimate.paid_back_steps,
            "runs": estimate.paid_back_steps / estimate.run_steps,
            "run_steps": estimate.run_steps,
            "planned_runs": estimate.runs,
            "saved_s": estimate.saved_s,
        },
        "s3": {
            "usd_month": estimate.usd_month,
            "usd_epoch": estimate.usd_epoch,
            "epoch_requests": estimate.epoch_requests,
            "epoch_bytes": estimate.epoch_bytes,
            "epochs": estimate.epochs,
            "usd_gb_month": estimate.prices.gb_month,
            "usd_1000_gets": estimate.prices.gets_1000,
            "usd_gb_traffic": estimate.prices.gb_traffic,
        },
    }


def _show(console: Console, url: str, estimate: "Estimate") -> None:
    plan = estimate.plan
    sizes = [(name, size, size * plan.entries) for name, size in plan.bytes_per_entry.items()]
    total = ("all", sum(plan.bytes_per_entry.values()), plan.total_bytes)
    console.table(
        ("array", "a view", "in all"),
        [(name, size_text(view), size_text(whole)) for name, view, whole in [*sizes, total]],
    )
    console.line("")
    console.fields(
        {
            "store": url,
            "views": f"{plan.entries}, of which {plan.entries_left} are not built yet: {size_text(plan.bytes_left)}",
            "free": free_text(plan.bytes_left, estimate.free_bytes),
            **({"images": estimate.images.text} if estimate.images else {}),
            "build": _build_text(estimate),
            "student": _student_text(estimate),
            "reading": _reading_text(estimate),
            "paid back": _paid_back_text(estimate),
            "on S3": _s3_text(estimate),
        }
    )


def _build_text(estimate: "Estimate") -> str:
    plan = estimate.plan
    if not plan.entries_left:
        return "nothing: the store is complete"
    calibration = (
        f", of which calibration takes {duration_text(plan.calibration_s)}" if plan.calibration_s else ""
    )
    slower = ", limited by the storage" if estimate.build_s > plan.seconds_left else ""
    return (
        f"{duration_text(estimate.build_s)} for one process{calibration}{slower}\n"
        "N processes on N devices divide all but the calibration by N; on one device they gain little\n"
        f"one writer puts {size_text(estimate.storage.write_bytes_per_s)} a second into the storage"
    )


def _student_text(estimate: "Estimate") -> str:
    trial = estimate.trial
    return (
        f"{trial.student}, {trial.method}, {trial.batch_size} crops: {duration_text(trial.step_s)} a step\n"
        f"with the teacher running at every step: {duration_text(trial.teacher_s)} more"
    )


def _reading_text(estimate: "Estimate") -> str:
    needed, given = estimate.needed_bytes_per_s, estimate.storage.read_bytes_per_s
    verdict = "enough" if estimate.readers == 1 else f"{estimate.readers} readers keep up with the student"
    return (
        f"the student needs {size_text(needed)} a second\n"
        f"the storage gives one reader {size_text(given)} a second: {verdict}"
    )


def _paid_back_text(estimate: "Estimate") -> str:
    steps, runs = estimate.paid_back_steps, estimate.paid_back_steps / estimate.run_steps
    planned = f"{estimate.runs} run{'s' if estimate.runs > 1 else ''} of {estimate.run_steps} steps"
    saved = estimate.saved_s
    verdict = f"save {duration_text(saved)}" if saved >= 0 else f"fall short by {duration_text(-saved)}"
    return f"after {steps} steps, {runs:.2g} runs\n{planned}: {verdict}"


def _s3_text(estimate: "Estimate") -> str:
    prices = estimate.prices
    return (
        f"{_usd(estimate.usd_month)} a month, {_usd(estimate.usd_epoch)} an epoch "
        f"({estimate.epoch_requests} GETs, {size_text(estimate.epoch_bytes)})\n"
        f"at {_usd(prices.gb_month)} a GB and month, {_usd(prices.gets_1000)} for 1000 GETs, "
        f"{_usd(prices.gb_traffic)} a GB of traffic"
    )


def _usd(amount: float) -> str:
    """Small amounts to a hundredth of a cent, since requests are that cheap."""
    if 0 < amount < 1e-4:
        return "less than 0.0001 USD"
    return (
        f"{amount:.2f} USD" if amount >= 1 or amount == 0 else f"{amount:.4f} USD".replace("00 USD", " USD")
    )
