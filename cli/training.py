"""The options of a training run: those of `kdcache distill`, most of which `kdcache compare` shares.

Every option is a field of distill.config.TrainConfig and has its default; only what is given on the command line or
by a variable is set.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from kdcache.cli import names, options
from kdcache.distill.config import (
    CROP_CHECKS,
    DEFAULT_CACHE_LIMIT_BYTES,
    DEFAULT_STEPS,
    EVALUATION_MODES,
    KD_IGNORES,
    MIXED_PRECISIONS,
    OPTIONS,
    SOURCES,
    WARM_UPS,
    TrainConfig,
)
from kdcache.distill.schedule import SCHEDULES
from kdcache.distill.units import bytes_text

# Parameters whose name is not their field's. Those of --crop, --flip and --save-every become other fields, see below.
FIELDS = {text.removeprefix("--").replace("-", "_"): field for field, text in OPTIONS.items()}
DEFAULTS = {field.name: field.default for field in fields(TrainConfig)}


def option(name: str, **attributes: Any) -> Callable[[options.Decorated], options.Decorated]:
    """An option that stays None where it is not given; the help shows the default of its field."""
    field = name.partition("/")[0].removeprefix("--").replace("-", "_")
    default = DEFAULTS.get(FIELDS.get(field, field))
    shown = (
        {"show_default": f"{default:g}" if isinstance(default, float) else str(default)} if default else {}
    )
    return options.option(name, **{"default": None, "show_default": False, **shown, **attributes})


train_options = options.together(
    option(
        "--method",
        group="method",
        metavar="NAME",
        type=options.method_name,
        help=f"What the student learns from: {names.listed(names.METHODS)}. `none` learns from labels alone.",
        show_default=False,
    ),
    option(
        "--source",
        group="method",
        type=click.Choice(SOURCES),
        help="Where the teacher's outputs come from: a store (cache), the teacher itself at every step (online), or nowhere.",
        show_default="cache; none for --method none",
    ),
    option(
        "--store",
        group="data",
        metavar="URL|NAME",
        help="The store to learn from: a URL, a folder, or a name under the home.",
        show_default="the newest that fits, under the home",
    ),
    options.home_option,
    options.dataset_options(required=False, split=None),
    option(
        "--split",
        group="data",
        metavar="SPLIT",
        help="Split to train on, for runs without a store. A store has its own split.",
    ),
    option(
        "--eval-split",
        group="output",
        metavar="SPLIT",
        help="Split that the student is scored on. '' asks for no evaluation.",
    ),
    option(
        "--fresh-views",
        group="views",
        is_flag=True,
        help="Draw new views all the time, without a store. For --source none and online.",
    ),
    option(
        "--passes",
        group="views",
        type=options.COUNT,
        help="Learn from the first N passes of the store only.",
        show_default="all",
    ),
    option(
        "--follow",
        group="views",
        is_flag=True,
        help="At the end of each epoch, add the passes that builders have completed meanwhile.",
    ),
    options.view_options("recipe", "crop", "scale_min", "scale_max", "flip", "photometric", "cat_max_ratio"),
    option(
        "--teacher",
        group="data",
        metavar="NAME",
        type=options.teacher_name,
        help="The online teacher, as `kdcache build --teacher` takes it.",
    ),
    option(
        "--weights",
        group="data",
        metavar="PATH|URL|auto",
        help="For online training: the teacher's weights, a file, a URL, or `auto` for the public checkpoint.",
    ),
    option(
        "--precision",
        group="machine",
        type=options.PRECISION,
        help="Precision of the online teacher's arithmetic.",
    ),
    option(
        "--student",
        group="student",
        metavar="NAME",
        type=options.student_name,
        help=f"The network to train: {names.listed(names.NETWORKS)}.",
    ),
    option(
        "--preset",
        group="student",
        metavar="NAME",
        help=f"Code base whose details the student has: {names.listed(names.PRESETS)}.",
        show_default="kdcache",
    ),
    option(
        "--backbone-weights",
        group="student",
        metavar="imagenet|none|PATH",
        help="Weights that the student's backbone starts with.",
    ),
    option(
        "--budget",
        group="length",
        type=options.duration,
        metavar="DURATION",
        help="Train for this long, such as 90s, 20m or 2h. Evaluation and checkpoints do not count.",
    ),
    option(
        "--steps",
        group="length",
        type=options.COUNT,
        help="Train for N steps.",
        show_default=f"{DEFAULT_STEPS}, where no length is given",
    ),
    option(
        "--epochs",
        group="length",
        type=options.COUNT,
        help="Train for N epochs. An epoch is one view of every image.",
    ),
    option(
        "--batch-size",
        group="length",
        type=options.COUNT,
        help="Number of crops in a step, over all processes together.",
    ),
    option("--lr", group="optimiser", type=float, help="Learning rate at the start."),
    option("--momentum", group="optimiser", type=float, help="Momentum of the optimiser, SGD."),
    option("--weight-decay", group="optimiser", type=float, help="Weight decay of the optimiser."),
    option(
        "--head-lr-factor",
        group="optimiser",
        type=float,
        help="Factor of the learning rate for the heads; the backbone has 1.",
    ),
    option(
        "--schedule",
        group="optimiser",
        type=click.Choice(list(SCHEDULES)),
        help="Shape of the learning rate over the run.",
    ),
    option("--power", group="optimiser", type=float, help="Exponent of the schedule poly."),
    option("--min-lr", group="optimiser", type=float, help="Learning rate at the end."),
    option(
        "--temperature",
        group="loss",
        type=float,
        help="Softmax temperature of the distillation loss.",
        show_default="the method's",
    ),
    option(
        "--kd-weight",
        group="loss",
        type=float,
        help="Factor for all distillation losses, against the cross-entropy with the labels.",
    ),
    option(
        "--kd-terms",
        group="loss",
        metavar="TERM=WEIGHT,...",
        help="Weights of single terms of the method; 0 leaves a term out.",
        show_default="the method's",
    ),
    option(
        "--logit-weight",
        group="loss",
        type=float,
        help="Weight of the term `logit`.",
        show_default="the method's",
    ),
    option(
        "--feature-weight",
        group="loss",
        type=float,
        help="Weight of the term `feature`.",
        show_default="the method's",
    ),
    option(
        "--aux-weight",
        group="loss",
        type=float,
        help="Weight of the auxiliary head's cross-entropy with the labels.",
    ),
    option(
        "--kd-ignore",
        group="loss",
        type=click.Choice(KD_IGNORES),
        help="Pixels that the distillation loss leaves out: padding alone (none), unlabelled pixels too (void), or not even "
        "padding, as in the published code (published).",
    ),
    option(
        "--mixed-precision",
        group="machine",
        type=click.Choice(MIXED_PRECISIONS),
        help="Precision of the student's arithmetic; `no` is float32.",
    ),
    option(
        "--compile",
        group="machine",
        is_flag=True,
        help="Compile the student with torch.compile. That takes minutes, and makes each step faster.",
    ),
    option(
        "--warm-up",
        group="length",
        type=click.Choice(WARM_UPS),
        help="Part of the slow start that counts as training time: the first steps (steps), compiling too (all), or none.",
    ),
    option(
        "--device",
        group="machine",
        type=click.Choice(["auto", "cpu"]),
        help="Device to train on. `auto` takes a GPU if there is one.",
    ),
    option(
        "--workers",
        group="machine",
        type=options.WHOLE,
        help="Number of worker processes that read and cut crops; 0 reads in the training process.",
        show_default="by the number of cores",
    ),
    option(
        "--seed",
        group="length",
        type=options.WHOLE,
        help="Seed of the student's start, of the order, and of fresh views.",
        show_default="0",
    ),
    option(
        "--pool-units",
        group="machine",
        type=options.COUNT,
        help="Number of units of the store that are shuffled together. More units take more memory.",
    ),
    option(
        "--check-crops",
        group="machine",
        type=click.Choice(["auto", *CROP_CHECKS]),
        help="How many crops to compare with those that the teacher saw: all, every 16th, or none. `auto`: every 16th on "
        "CUDA, else all. Those of the first batch always are, unless `off`.",
    ),
    option(
        "--cache-limit",
        group="machine",
        type=options.byte_count,
        metavar="SIZE",
        help="Disk space on this host for shards of stores that are elsewhere, and for decoded images.",
        show_default=bytes_text(DEFAULT_CACHE_LIMIT_BYTES),
    ),
    option("--image-cache", group="machine", metavar="off|auto|DIR", help=options.IMAGE_CACHE_HELP),
    option(
        "--profile",
        group="output",
        is_flag=True,
        help="Show where the time of a step goes, and keep a trace of a few steps.",
    ),
    option(
        "--log-every",
        group="output",
        type=options.COUNT,
        metavar="STEPS",
        help="Number of steps between two lines of metrics.",
    ),
    option(
        "--gradnorm-every",
        group="output",
        type=options.WHOLE,
        metavar="STEPS",
        help="Number of steps between measurements of the gradient norms; 0 for never.",
    ),
    option(
        "--eval-every",
        group="output",
        type=options.WHOLE,
        metavar="STEPS",
        help="Number of steps between evaluations.",
        show_default="one evaluation, at the end",
    ),
    option(
        "--eval-mode",
        group="output",
        type=click.Choice(EVALUATION_MODES),
        help="Evaluate whole images, or sliding windows of the crop's size.",
    ),
    option(
        "--save-every",
        group="output",
        type=options.steps_or_duration,
        metavar="STEPS|DURATION",
        help="Steps or training time between two checkpoints.",
        show_default="5m",
    ),
    option(
        "--out",
        group="output",
        metavar="DIR",
        help="Folder of the run.",
        show_default="runs/METHOD-STUDENT",
    ),
    options.option(
        "--resume",
        group="output",
        is_flag=True,
        help="Continue the run in --out, with its own options where you give none.",
    ),
)


def config_fields(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of TrainConfig that were given."""
    given = dict(given)
    views = options.view_overrides(given)
    save_every = given.pop("save_every")
    asked = {FIELDS.get(name, name): value for name, value in given.items() if value is not None}
    if isinstance(save_every, int):
        asked |= {"save_every_steps": save_every, "save_every_s": 0.0}
    elif save_every is not None:
        asked |= {"save_every_steps": 0, "save_every_s": save_every}
    return asked | views
