"""`kdcache info`: what one store holds, from the store alone."""

import time
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli import options
from kdcache.cli.options import option
from kdcache.cli.output import Console
from kdcache.distill.units import duration_text, size_text

if TYPE_CHECKING:
    from kdcache.cache.build.leases import SeenLease
    from kdcache.cache.build.watch import BuildStatus
    from kdcache.cache.store.store import Store
    from kdcache.cache.store.survey import Survey

LOOK_S = 5.0


@options.command()
@click.argument("store", required=False)
@option("--watch", is_flag=True, help="Show how its builders come on, until the store is complete.")
@options.home_option
@options.json_option
@click.pass_obj
def command(console: Console, store: str | None, watch: bool, home: str) -> None:
    """Show what STORE holds: a URL, or a name under the home as `kdcache ls` prints it.

    Without STORE, the newest store of the home. With --watch: units done by all builders, their rate, who is at
    which unit, and when the store will be complete; with --json too, one document a look, each on a line.
    """
    from kdcache.cli.home import find_store

    found = find_store(home, store)
    from kdcache.cache.store.survey import survey

    if watch:
        _watch(console, found)
        return
    surveyed = survey(found)
    summary = summarise(found, surveyed)
    if found.is_calibrated:
        calibration = found.calibration
        summary["codecs"] = {name: codec.summary() for name, codec in calibration.codecs.items()}
        summary["fidelity"] = {name: dict(lost) for name, lost in calibration.fidelity.items()}
        summary["stored"] = {name: calibration.describe(name) for name in calibration.codecs}
        summary["teacher_check"] = dict(calibration.teacher_check)
    summary["built"] = dict(surveyed.last.built) if surveyed.last else {}
    if console.json:
        console.document(summary)
    else:
        console.fields(_render(summary))


def summarise(store: "Store", surveyed: "Survey | None" = None) -> dict[str, Any]:
    """The request of a store and how far it is, as JSON values. Bytes are those of complete passes."""
    from kdcache.cache.storage.urls import redact
    from kdcache.cache.store.survey import survey

    spec, found = store.spec, surveyed or survey(store)
    images = spec.dataset.images
    return {
        "name": redact(store.url).rstrip("/").rpartition("/")[2],
        "url": redact(store.url),
        "key": spec.key,
        **{field: value for field, value in spec.to_dict().items() if field != "teacher"},
        "teacher": spec.teacher,
        "goal": found.goal,
        "complete_passes": list(found.complete_passes),
        "partial": {str(index): list(arrays) for index, arrays in found.partial.items()},
        "units": {str(index): [units, spec.units_per_pass] for index, units in found.units.items()},
        "bytes": sum(found.bytes_by_array.values()),
        "bytes_per_view": {
            name: round(size / (found.passes_by_array[name] * images))
            for name, size in found.bytes_by_array.items()
        },
    }


def _watch(console: Console, store: "Store") -> None:
    """Look again and again until the store is complete."""
    from kdcache.cache.build.watch import StoreWatch
    from kdcache.cache.storage.urls import redact

    watch = StoreWatch(store)
    while True:
        status = watch.status()
        if console.json:
            console.document(_status_values(redact(store.url), status), on_one_line=True)
        else:
            _show_status(console, redact(store.url), status)
        if status.is_complete:
            return
        time.sleep(LOOK_S)


def _status_values(url: str, status: "BuildStatus") -> dict[str, Any]:
    return {
        "url": url,
        "complete": status.is_complete,
        "passes": [status.passes_complete, status.passes_planned],
        "units": [status.units_done, status.units_planned],
        "units_per_s": status.units_per_s,
        "seconds_left": status.seconds_left,
        "leases": [
            {
                "pass": lease.pass_index,
                "unit": lease.unit,
                "host": lease.host,
                "process": lease.process,
                "seen_s": lease.seen_s,
                "unchanged_s": lease.unchanged_s,
            }
            for lease in status.leases
        ],
    }


def _show_status(console: Console, url: str, status: "BuildStatus") -> None:
    """On a terminal in the place of the look before, else below it."""
    click.clear()
    rate = "" if status.units_per_s is None else f", {60 * status.units_per_s:.3g} a minute"
    left = "" if status.seconds_left is None else f", complete in about {duration_text(status.seconds_left)}"
    console.fields(
        {
            "store": url,
            "passes": f"{status.passes_complete} of {status.passes_planned} complete",
            "units": f"{status.units_done} of {status.units_planned}{rate}"
            + ("" if status.is_complete else left),
        }
    )
    if status.leases:
        header = ("host", "process", "pass", "unit", "seen for", "last beat")
        console.table(header, [_lease_row(lease) for lease in status.leases])
    console.line("")


def _lease_row(lease: "SeenLease") -> tuple[object, ...]:
    beat = f"{duration_text(lease.unchanged_s)} ago"
    return lease.host, lease.process, lease.pass_index, lease.unit, duration_text(lease.seen_s), beat


def holds_text(summary: dict[str, Any]) -> str:
    """How much of a store is here, in one line."""
    text = f"{len(summary['complete_passes'])} of {summary['goal']} passes complete, {size_text(summary['bytes'])}"
    lacking = [name for name in summary["targets"] if name not in summary["bytes_per_view"]]
    return f"{text}; without {', '.join(lacking)}" if summary["partial"] and lacking else text


def _render(summary: dict[str, Any]) -> dict[str, str]:
    dataset, views = summary["dataset"], summary["views"]
    targets = [
        f"{name}: {'x'.join(map(str, target['shape']))}, asked for as {target['codec']}"
        for name, target in summary["targets"].items()
    ]
    stored = [f"{name}: {text}" for name, text in summary.get("stored", {}).items()]
    passes = [
        f"{index}: {committed}/{units} units"
        + (", complete" if int(index) in summary["complete_passes"] else "")
        + (f", here only {', '.join(summary['partial'][index])}" if index in summary["partial"] else "")
        for index, (committed, units) in summary["units"].items()
    ]
    sizes = [f"{name}: {size_text(size)}" for name, size in summary["bytes_per_view"].items()]
    return {
        "store": summary["url"],
        "key": summary["key"],
        "dataset": f"{dataset['name']} {dataset['split']}, {dataset['images']} images, "
        f"{len(dataset['class_names'])} classes",
        "teacher": _pairs(summary["teacher"]),
        "views": _pairs(views) + f"\nseed: {summary['seed']}",
        "inputs": summary["inputs"],
        "targets": "\n".join(targets),
        "stored": "\n".join(stored) or "not measured yet",
        "unit": f"{summary['unit_entries']} entries",
        "passes": "\n".join(
            [f"{len(summary['complete_passes'])} complete of {summary['goal']} wanted", *passes]
        ),
        "size": size_text(summary["bytes"]),
        "a view": "\n".join(sizes) or "nothing complete yet",
        "teacher check": summary.get("teacher_check", {}).get("text", "not made yet"),
        "last commit": _pairs(summary["built"]) or "none",
    }


def _pairs(values: dict[str, Any]) -> str:
    """Lines `name: value`; a nested dict on one line."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {inner}" for name, inner in value.items())
        return str(value)

    return "\n".join(f"{name}: {text(value)}" for name, value in values.items())
