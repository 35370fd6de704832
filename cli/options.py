"""What the commands' options have in common: variables and defaults in the help, sizes, durations, shared options.

Help must not start torch, so nothing here imports what needs it; names are checked by the library itself.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from kdcache.cli.output import Console
from kdcache.distill.units import parse_bytes, parse_duration

DEFAULT_HOME = "stores"

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def size(text: str) -> tuple[int, int]:
    """HxW in pixels, as (height, width)."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.strip().lower())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size: height x width in pixels, such as 512x1024")
    return int(match[1]), int(match[2])


def duration(text: str) -> float:
    """90s, 20m, 2h, 1h30m, as seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def byte_count(text: str) -> int:
    """50GB, 800MiB, as bytes."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def steps_or_duration(text: str) -> int | float:
    """A number of steps (int), or a duration in seconds (float)."""
    return int(text) if text.strip().isdigit() else duration(text)


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise click.BadParameter(f"{text!r} is not a list of different names with commas between them")
    return found


def pass_range(text: str) -> slice:
    """Passes A:B, from A to before B as in Python, A: or :B; or one pass."""
    match = re.fullmatch(r"(\d+)|(\d*):(\d*)", text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} are no passes: 0:4 are the first four, 4: the rest, 2 is one")
    if match[1]:
        return slice(int(match[1]), int(match[1]) + 1)
    return slice(int(match[2] or 0), int(match[3]) if match[3] else None)


class NumberType(click.IntRange):
    """An integer that is at least `min`."""

    name = "N"


COUNT = NumberType(min=1)
WHOLE = NumberType(min=0)


def option(*flags: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
    """click.option that shows its variable, and its default or what `show_default` says of it."""
    return click.option(*flags, **{"show_envvar": True, "show_default": True, **attributes})


def command(**attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """click.command with help as wide as the terminal allows and -h."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    return click.command(context_settings=settings, **attributes)


def _together(*chosen: Callable[[Any], Any]) -> Callable[[Decorated], Decorated]:
    """One decorator of several options, which help lists in this order."""

    def decorate(function: Decorated) -> Decorated:
        for each in reversed(chosen):
            function = each(function)
        return function

    return decorate


_DATA_ROOT = "$KDCACHE_DATA/NAME or ./data/NAME"

# Where a store's images and its teacher are found, see origins.py.
origin_options = _together(
    option(
        "--data-root",
        metavar="DIR",
        help="Folder of the dataset, where the store does not keep its crops.",
        show_default=_DATA_ROOT,
    ),
    option(
        "--teacher",
        metavar="NAME",
        help="The store's teacher; a factory has to be named again.",
        show_default="what the store says",
    ),
    option("--weights", metavar="PATH|URL|auto", default="auto", help="Its weights, as `build` took them."),
)

# What of a store is copied, and how much of it at once.
transfer_options = _together(
    option("--targets", type=names, metavar="NAME,...", help="Targets to copy.", show_default="all"),
    option("--passes", type=pass_range, metavar="A:B", help="Passes to copy.", show_default="all"),
    option("--workers", type=COUNT, default=8, help="Units copied at once."),
)


def home_option(function: Decorated) -> Decorated:
    """`--home`, whose variable is KDCACHE_HOME for every command."""
    text = "Where stores live: a folder, or s3://bucket/prefix."
    return option("--home", metavar="URL", default=DEFAULT_HOME, envvar="KDCACHE_HOME", help=text)(function)


def json_option(function: Decorated) -> Decorated:
    """`--json`: data, and errors too, as one JSON document."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.ensure_object(Console).json |= value

    return option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="One JSON document to stdout.",
    )(function)


def dataset_options(*, required: bool, split: str | None) -> Callable[[Decorated], Decorated]:
    """`--dataset`, `--data-root` and, where the command has one, `--split`."""
    chosen = [
        option(
            "--dataset",
            metavar="NAME",
            required=required,
            help="cityscapes, ade20k, voc2012, camvid, folder or streets[:HxW[:COUNT[:SEED]]].",
        ),
        option("--data-root", metavar="DIR", help="Folder of the dataset.", show_default=_DATA_ROOT),
    ]
    if split is not None:
        chosen.append(option("--split", metavar="SPLIT", default=split, help="Split of the dataset."))
    return _together(*chosen)


def device_option(function: Decorated) -> Decorated:
    return option(
        "--device",
        type=click.Choice(["auto", "cpu"]),
        default="auto",
        help="`auto` takes an accelerator if there is one.",
    )(function)


_RECIPE: dict[str, Any] = {"show_default": "the recipe's"}
VIEW_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "recipe": option(
        "--recipe",
        metavar="NAME",
        show_default="mmseg",
        help="Scales and colours of views: mmseg, cirkd or skd; or a whole recipe, as paper-cityscapes: README.",
    ),
    "crop": option("--crop", type=size, metavar="HxW", help="Size of a crop, in pixels.", **_RECIPE),
    "base": option(
        "--base", type=size, metavar="LONGxSHORT", help="Fit images into this box first.", **_RECIPE
    ),
    "scale_min": option("--scale-min", type=float, help="Smallest scale.", **_RECIPE),
    "scale_max": option("--scale-max", type=float, help="Largest scale.", **_RECIPE),
    "scale_step": option("--scale-step", type=float, help="Step between scales; 0 for any.", **_RECIPE),
    "flip": option("--flip/--no-flip", default=None, help="Mirror half of the views.", **_RECIPE),
    "photometric": option("--photometric/--no-photometric", default=None, help="Distort colours.", **_RECIPE),
    "cat_max_ratio": option(
        "--cat-max-ratio",
        type=float,
        help="Redraw crops in which one class has this share; 1 for never.",
        **_RECIPE,
    ),
}


def view_options(*wanted: str) -> Callable[[Decorated], Decorated]:
    """Some of VIEW_OPTIONS."""
    return _together(*(VIEW_OPTIONS[name] for name in wanted))


def view_overrides(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `policy.view_policy`, removed from a command's parameters."""
    options = {name: given.pop(name, None) for name in VIEW_OPTIONS}
    same = ("scale_min", "scale_max", "scale_step", "photometric", "cat_max_ratio")
    fields = {name: options[name] for name in same}
    fields["policy"] = options["recipe"]
    fields["crop_height_px"], fields["crop_width_px"] = options["crop"] or (None, None)
    fields["base_long_px"], fields["base_short_px"] = options["base"] or (None, None)
    fields["flip_probability"] = None if options["flip"] is None else 0.5 * options["flip"]
    return {name: value for name, value in fields.items() if value is not None}
