"""What the commands' options have in common: groups in the help, variables, sizes, durations, shared options.

Help must not start torch, so nothing here imports what needs it. Names are checked here against names.py, at once, and
by the library again.
"""

import re
import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import click

from kdcache.cache.errors import unknown_name
from kdcache.cli import names as known
from kdcache.cli.output import Console
from kdcache.distill.units import parse_bytes, parse_duration

DEFAULT_HOME = "stores"

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

GROUPS = {  # key -> title in the help, in this order
    "": "Options",
    "method": "Method",
    "data": "Data and teacher",
    "stored": "What is stored",
    "views": "Views",
    "student": "Student",
    "length": "Length",
    "optimiser": "Optimiser",
    "loss": "Loss",
    "prices": "Prices",
    "machine": "Machine",
    "output": "Output",
}


class Option(click.Option):
    """click's option with a group, a key of GROUPS, under which the help lists it."""

    def __init__(self, *args: Any, group: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Without click's brackets around a default in words, and without its "x>=1", which goes without saying."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        text = re.sub(r"\[default: \((.*)\)(?=\]|;)", r"[default: \1", record[1])
        return record[0], re.sub(r"(; x>=\d+|  \[x>=\d+\]|x>=\d+; )", "", text)


class Command(click.Command):
    """click's command whose help has its options in groups, and examples at the end."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group, title in GROUPS.items():
            listed = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
            records = [p.get_help_record(ctx) for p in listed if getattr(p, "group", "output") == group]
            if records:
                with formatter.section(title):
                    formatter.write_dl([record for record in records if record is not None])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        flags = [parameter.opts[0] for parameter in self.params if isinstance(parameter, Option)]
        shown = next(flag for flag in [*flags, "--json"] if flag != "--home")
        rule = f"Every option can also be set by a variable: {shown} by {variable(str(ctx.info_name), shown)}"
        if "--home" in flags:
            rule += ", but --home by KDCACHE_HOME"
        formatter.write_paragraph()
        formatter.write_text(f"{rule}.")
        if self.examples:
            with formatter.section("Examples"):
                # As they are typed: nobody can copy a command that was wrapped.
                formatter.write(textwrap.indent("\n".join(self.examples), "  ") + "\n")


def variable(command: str, option: str) -> str:
    """The variable of an option, `--like-this`: KDCACHE_<COMMAND>_<OPTION>."""
    return f"KDCACHE_{command}_{option.removeprefix('--')}".upper().replace("-", "_")


def option(*flags: str, group: str = "", **attributes: Any) -> Callable[[Decorated], Decorated]:
    """click.option in a group of the help, which shows its default or what `show_default` says of it."""
    return click.option(*flags, cls=Option, group=group, **{"show_default": True, **attributes})


def command(
    *, examples: Sequence[str] = (), **attributes: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """click.command with grouped help as wide as the terminal allows, and -h."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    return click.command(cls=Command, examples=examples, context_settings=settings, **attributes)


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
        raise click.BadParameter(
            f"{text!r} does not name passes: 0:4 are the first four, 4: the rest, 2 is one"
        )
    if match[1]:
        return slice(int(match[1]), int(match[1]) + 1)
    return slice(int(match[2] or 0), int(match[3]) if match[3] else None)


def one_of(kind: str, allowed: Sequence[str], *, more: str = "") -> Callable[[str], str]:
    """A name that is among `allowed`, or carries a colon, as factories and data sets with options do."""

    def check(text: str) -> str:
        if text.partition(":")[0] in allowed or (more and ":" in text):
            return text
        raise unknown_name(kind, text, allowed, more=more)

    return check


def method_names(text: str) -> tuple[str, ...]:
    """Names of methods with commas between them."""
    return tuple(method_name(name) for name in names(text))


dataset_name = one_of("dataset", known.DATASETS)
method_name = one_of("method", known.METHODS)
student_name = one_of("student", known.NETWORKS)
teacher_name = one_of("teacher", known.NETWORKS, more="or your own factory package.module:function")
recipe_name = one_of("recipe", (*known.VIEW_POLICIES, *known.RECIPES))


def typed(
    words: Sequence[str],
    of: click.Command,
    *,
    into: click.Command | None = None,
    without: Collection[str] = (),
) -> list[str]:
    """The options in the command line of a command that another one takes too, as they were typed.

    Args:
        words: of the command line, after the command's name.
        of: the command that was run.
        into: the other one; the same by default.
        without: parameters to leave out.
    """
    takes = {
        flag: parameter
        for parameter in of.params
        if isinstance(parameter, click.Option)
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    wanted = {parameter.name for parameter in (into or of).params} - set(without)
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        flag, equals, _ = word.partition("=")
        if (parameter := takes.get(flag)) is None:
            continue
        option_words = [word] if equals or parameter.is_flag else [word, next(rest)]
        kept += option_words if parameter.name in wanted else []
    return kept


class NumberType(click.IntRange):
    """An integer that is at least `min`."""

    name = "N"


COUNT = NumberType(min=1)
WHOLE = NumberType(min=0)
PRECISION = click.Choice(["float32", "bfloat16", "float16"])


def together(*chosen: Callable[[Any], Any]) -> Callable[[Decorated], Decorated]:
    """One decorator of several options, which help lists in this order."""

    def decorate(function: Decorated) -> Decorated:
        for each in reversed(chosen):
            function = each(function)
        return function

    return decorate


data_root_option = option(
    "--data-root",
    group="data",
    metavar="DIR",
    help="Folder of the dataset. A store that keeps its crops does not need it.",
    show_default="$KDCACHE_DATA/NAME or ./data/NAME",
)

# Where a store's images and its teacher are found, see origins.py.
origin_options = together(
    data_root_option,
    option(
        "--teacher",
        group="data",
        metavar="NAME",
        type=teacher_name,
        help="The teacher that the store was built with. A factory of your own has to be named again.",
        show_default="as the store says",
    ),
    option(
        "--weights",
        group="data",
        metavar="PATH|URL|auto",
        default="auto",
        help="The teacher's weights: a file, a URL, or `auto` for the public checkpoint.",
    ),
)

# What of a store is copied, and how much of it at once.
transfer_options = together(
    option(
        "--targets",
        group="data",
        type=names,
        metavar="NAME,...",
        help=f"Copy only these targets, among {known.listed(known.TARGETS)}.",
        show_default="all",
    ),
    option(
        "--passes",
        group="data",
        type=pass_range,
        metavar="A:B",
        help="Copy only these passes: 0:4 are the first four.",
        show_default="all",
    ),
    option("--workers", group="machine", type=COUNT, default=8, help="Number of units to copy at once."),
)


def home_option(function: Decorated) -> Decorated:
    """`--home`, whose variable is KDCACHE_HOME for every command."""
    text = "Folder or bucket that contains your stores: a path, or s3://bucket/prefix."
    return option(
        "--home", group="data", metavar="URL", default=DEFAULT_HOME, envvar="KDCACHE_HOME", help=text
    )(function)


def json_option(function: Decorated) -> Decorated:
    """`--json`: data, and errors too, as one JSON document."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.ensure_object(Console).json |= value

    return option(
        "--json",
        group="output",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="Write the result as one JSON document to stdout, and errors as one to stderr.",
    )(function)


def dataset_options(*, required: bool, split: str | None) -> Callable[[Decorated], Decorated]:
    """`--dataset`, `--data-root` and, where the command has one, `--split`."""
    chosen = [
        option(
            "--dataset",
            group="data",
            metavar="NAME",
            type=dataset_name,
            required=required,
            help=f"Dataset: {known.listed(known.DATASETS)}. `streets` draws its own images: streets[:HxW[:COUNT[:SEED]]].",
        ),
        data_root_option,
    ]
    if split is not None:
        chosen.append(
            option("--split", group="data", metavar="SPLIT", default=split, help="Split of the dataset.")
        )
    return together(*chosen)


IMAGE_CACHE_HELP = (
    "Where decoded images are kept, so that this host decodes each of them once: in the host's cache (auto), in a folder, "
    "or nowhere (off). They count towards --cache-limit."
)


def device_option(function: Decorated) -> Decorated:
    return option(
        "--device",
        group="machine",
        type=click.Choice(["auto", "cpu"]),
        default="auto",
        help="Device to compute on. `auto` takes a GPU if there is one.",
    )(function)


def _view(*flags: str, **attributes: Any) -> Callable[[Any], Any]:
    return option(*flags, group="views", **{"show_default": "the recipe's", **attributes})


VIEW_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "recipe": _view(
        "--recipe",
        metavar="NAME",
        type=recipe_name,
        show_default="mmseg",
        help=f"Scales and colours of the views: {known.listed(known.VIEW_POLICIES)}. Or views and training as a whole: "
        f"{known.listed(known.RECIPES)}.",
    ),
    "crop": _view("--crop", type=size, metavar="HxW", help="Height and width of a crop, in pixels."),
    "base": _view(
        "--base", type=size, metavar="LONGxSHORT", help="Box in pixels that every image is fitted into first."
    ),
    "scale_min": _view("--scale-min", type=float, help="Smallest scale that is drawn."),
    "scale_max": _view("--scale-max", type=float, help="Largest scale that is drawn."),
    "scale_step": _view(
        "--scale-step", type=float, help="Distance between the scales that are drawn; 0 draws any."
    ),
    "flip": _view("--flip/--no-flip", default=None, help="Mirror half of the views."),
    "photometric": _view(
        "--photometric/--no-photometric",
        default=None,
        help="Change brightness, contrast, saturation and hue of the views at random.",
    ),
    "cat_max_ratio": _view(
        "--cat-max-ratio",
        type=float,
        help="Draw a crop again if one class fills this share of it; 1 never does.",
    ),
}


def view_options(*wanted: str) -> Callable[[Decorated], Decorated]:
    """Some of VIEW_OPTIONS."""
    return together(*(VIEW_OPTIONS[name] for name in wanted))


def view_overrides(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of views.view_policy out of a command's parameters, which lose them."""
    options = {name: given.pop(name, None) for name in VIEW_OPTIONS}
    same = ("recipe", "scale_min", "scale_max", "scale_step", "photometric", "cat_max_ratio")
    fields = {name: options[name] for name in same}
    fields["crop_height_px"], fields["crop_width_px"] = options["crop"] or (None, None)
    fields["base_long_px"], fields["base_short_px"] = options["base"] or (None, None)
    fields["flip_probability"] = None if options["flip"] is None else 0.5 * options["flip"]
    return {name: value for name, value in fields.items() if value is not None}
