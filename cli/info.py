"""`kdcache info`: what one store contains, from the store alone."""

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


@options.command(examples=["kdcache info", "kdcache info STORE --watch"])
@click.argument("store", required=False)
@option("--watch", is_flag=True, help="Show the progress of its builders until the store is complete.")
@options.home_option
@options.json_option
@click.pass_obj
def command(console: Console, store: str | None, watch: bool, home: str) -> None:
    """Show one store: what was asked for, its passes, its size, and the check of its teacher.

    STORE is a URL, or a name under the home as `kdcache ls` prints it; without it, the newest store of the home. --watch
    shows the units that all builders have done, their rate, who works on which unit, and when the store will be complete;
    with --json it writes one document on a line each time.
    """
    from kdcache.cli.home import distill_words, find_store

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
        if surveyed.complete_passes:
            console.next("kdcache", "distill", *distill_words(found))


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


def contents_text(summary: dict[str, Any]) -> str:
    """How much of a store is here, in one line."""
    text = f"{len(summary['complete_passes'])} of {summary['goal']} passes complete, {size_text(summary['bytes'])}"
    lacking = [name for name in summary["targets"] if name not in summary["bytes_per_view"]]
    return f"{text}; without {', '.join(lacking)}" if summary["partial"] and lacking else text


def _render(summary: dict[str, Any]) -> dict[str, str]:
    dataset = summary["dataset"]
    targets = [
        f"{name}: {'x'.join(map(str, target['shape']))}, codec asked for: {target['codec']}"
        for name, target in summary["targets"].items()
    ]
    stored = [f"{name}: {text}" for name, text in summary.get("stored", {}).items()]
    sizes = [f"{name}: {size_text(size)}" for name, size in summary["bytes_per_view"].items()]
    return {
        "store": summary["url"],
        "key": summary["key"],
        "dataset": f"{dataset['name']} {dataset['split']}, {dataset['images']} images, "
        f"{len(dataset['class_names'])} classes",
        "teacher": _teacher_text(summary["teacher"]),
        "views": _views_text(summary["views"], summary["seed"]),
        "inputs": summary["inputs"],
        "targets": "\n".join(targets),
        "stored": "\n".join(stored) or "not measured yet",
        "unit": f"{summary['unit_entries']} entries",
        "passes": _passes_text(summary),
        "size": size_text(summary["bytes"]),
        "a view": "\n".join(sizes) or "no pass is complete yet",
        "teacher check": summary.get("teacher_check", {}).get("text", "not made yet"),
        "last commit": _built_text(summary["built"]) or "none",
    }


def _passes_text(summary: dict[str, Any]) -> str:
    lines = [f"{len(summary['complete_passes'])} complete of {summary['goal']} wanted"]
    for index, (committed, units) in summary["units"].items():
        complete = ", complete" if int(index) in summary["complete_passes"] else ""
        here = f", here only {', '.join(summary['partial'][index])}" if index in summary["partial"] else ""
        lines.append(f"{index}: {committed}/{units} units{complete}{here}")
    return "\n".join(lines)


def _teacher_text(teacher: dict[str, Any]) -> str:
    """Name and precision, then a line for whatever else is known of it; a network's details are for --json."""
    rest = {name: value for name, value in teacher.items() if name not in ("name", "precision", "network")}
    return "\n".join([f"{teacher['name']}, {words(teacher.get('precision'))}", *_lines(rest)])


def _views_text(views: dict[str, Any], seed: int) -> str:
    step = f" in steps of {views['scale_step']:g}" if views["scale_step"] else ""
    base = f"images fitted into {views['base_long_px']}x{views['base_short_px']} px\n"
    redrawn = f"drawn again if one class fills {views['cat_max_ratio']:.0%}\n"
    return (
        f"crops of {views['crop_height_px']}x{views['crop_width_px']} px, seed {seed}\n"
        + (base if views["base_long_px"] else "")
        + f"scales from {views['scale_min']:g} to {views['scale_max']:g}{step}\n"
        + (redrawn if views["cat_max_ratio"] < 1 else "")
        + f"{views['flip_probability']:.0%} mirrored, colours {'changed' if views['photometric'] else 'kept'}"
    )


def _built_text(built: dict[str, Any]) -> str:
    """Of a commit, whose record may hold anything: its time first, a line for each field, and for each target's fidelity."""
    fidelity = built.get("fidelity")
    by_target = fidelity if isinstance(fidelity, dict) else {}
    fields = {name: value for name, value in built.items() if name not in ("time", "fidelity")}
    lost = {f"fidelity of {target}": value for target, value in by_target.items()}
    return "\n".join(_lines({"time": built.get("time"), **fields, **lost}))


def _lines(values: dict[str, Any]) -> list[str]:
    """Lines `name: value`, without those that say nothing."""
    return [
        f"{str(name).replace('_', ' ')}: {text}" for name, value in values.items() if (text := words(value))
    ]


def words(value: Any) -> str:
    """A JSON value as people read it; nothing for an empty one."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        parts = {str(name).replace("_", " "): words(inner) for name, inner in value.items()}
        return ", ".join(f"{name} {text}" for name, text in parts.items() if text)
    return " ".join(filter(None, map(words, value))) if isinstance(value, list | tuple) else str(value)
