"""`kdcache ls`: the stores of the home.

It imports neither torch nor zarr, which take seconds, for it reads the documents of a store alone.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli import options
from kdcache.cli.names import DATASETS, listed
from kdcache.cli.output import Console
from kdcache.distill.units import size_text

if TYPE_CHECKING:
    from kdcache.cache.errors import KDCacheError
    from kdcache.cache.store.opening import Home
    from kdcache.cache.store.store import Store

_AT_ONCE = 8  # stores; a bucket answers all of them while one waits


@options.command(examples=["kdcache ls", "kdcache ls --home s3://bucket/stores --json"])
@options.home_option
@options.json_option
@click.pass_obj
def command(console: Console, home: str) -> None:
    """List the stores of the home. A damaged store is listed with what is wrong; the others are listed as usual.

    On a narrow terminal some columns are left out; in a pipe or a file all are written.
    """
    from kdcache.cache.storage.urls import redact
    from kdcache.cache.store.opening import list_stores

    summaries, damaged = _summarise_all(list_stores(home))
    if console.json:
        console.document([*summaries, *({"url": url, "damaged": why} for url, why in damaged.items())])
        return
    if summaries:
        console.table(
            (
                "store",
                "dataset",
                "teacher",
                "score",
                "crop",
                "targets",
                "passes",
                "done",
                "size",
                "last commit",
            ),
            [_row(summary) for summary in summaries],
            optional=("crop", "teacher", "dataset", "done", "score", "last commit", "targets"),
        )
    elif not damaged:
        console.note(f"no stores under {redact(home)}")
        console.next(
            "kdcache",
            "build",
            "--dataset",
            "NAME",
            *options.typed(console.args, command),
            why=f"NAME is {listed(DATASETS)}",
        )
    for url, why in damaged.items():
        console.line(f"damaged: {url}: {why}")
    if damaged:
        console.next("kdcache", "verify", next(iter(damaged)))


def _summarise_all(home: "Home") -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Summaries of the stores that can be read; of the others, by URL, why not."""
    from kdcache.cache.errors import KDCacheError
    from kdcache.cache.storage.urls import redact

    def look(store: "Store") -> "dict[str, Any] | KDCacheError":
        try:
            return _summarise(store)
        except KDCacheError as error:
            return error

    summaries = []
    damaged = {url: str(error) for url, error in home.unreadable.items()}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for store, found in zip(home.stores, pool.map(look, home.stores), strict=True):
            if isinstance(found, KDCacheError):
                damaged[redact(store.url)] = str(found)
            else:
                summaries.append(found)
    return summaries, damaged


def _summarise(store: "Store") -> dict[str, Any]:
    from kdcache.cache.store.survey import survey
    from kdcache.cache.teachers.weights import public_miou
    from kdcache.cli.info import summarise

    store.checks_sizes = False
    surveyed = survey(store)
    calibration = store.calibration_summary if surveyed.last else None
    return {
        **summarise(store, surveyed),
        "progress": surveyed.progress,
        "last_commit_at": surveyed.last.built.get("time", "") if surveyed.last else "",
        "codecs": dict(calibration.codecs) if calibration else {},
        "teacher_miou": public_miou(str(store.spec.teacher.get("weights_sha256", ""))),
        "teacher_accuracy": calibration.teacher_check.get("accuracy") if calibration else None,
    }


def _row(summary: dict[str, Any]) -> tuple[str, ...]:
    dataset, views = summary["dataset"], summary["views"]
    return (
        summary["name"],
        f"{dataset['name']} {dataset['split']}",
        summary["teacher"]["name"],
        _score(summary),
        f"{views['crop_height_px']}x{views['crop_width_px']}",
        ",".join(_target(summary, name) for name in summary["targets"]),
        f"{len(summary['complete_passes'])}/{summary['goal']}",
        f"{summary['progress']:.0%}",
        size_text(summary["bytes"]),
        summary["last_commit_at"],
    )


def _target(summary: dict[str, Any], name: str) -> str:
    """A target with its codec; in brackets if this copy was made without it."""
    text = f"{name}:{summary['codecs'][name]}" if name in summary["codecs"] else name
    return f"({text})" if summary["partial"] and name not in summary["bytes_per_view"] else text


def _score(summary: dict[str, Any]) -> str:
    """The teacher's published mIoU, or the share of labelled pixels that it got right on the crops of the calibration."""
    if summary["teacher_miou"] is not None:
        return f"mIoU {summary['teacher_miou']:.1f} %"
    accuracy = summary["teacher_accuracy"]
    return f"{accuracy:.1%} of pixels" if isinstance(accuracy, float) else "-"
