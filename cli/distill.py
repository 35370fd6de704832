"""`kdcache distill`: train a student, from a store or with its teacher running along.

    kdcache distill --method logit --budget 2h                                  # the home's newest store
    kdcache distill --method none --dataset streets:96x192:40 --fresh-views --steps 20 --backbone-weights none
    accelerate launch -m kdcache.cli distill --method feature --store stores/NAME --epochs 40

Every option is a field of distill.config.TrainConfig and has its default; only what is given on the command line or
by a variable is set here.
"""

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cache.errors import NotFoundError, UsageError
from kdcache.cli import options
from kdcache.cli.output import Console
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
from kdcache.distill.recipes import RECIPES, recipe_fields
from kdcache.distill.schedule import SCHEDULES
from kdcache.distill.units import bytes_text, duration_text

if TYPE_CHECKING:
    from kdcache.distill.training.results import RunResult

# Parameters whose name is not their field's. Those of --crop, --flip and --save-every become other fields, see below.
FIELDS = {text.removeprefix("--").replace("-", "_"): field for field, text in OPTIONS.items()}
LENGTHS = ("budget_seconds", "steps", "epochs")
DEFAULTS = {field.name: field.default for field in fields(TrainConfig)}


def option(name: str, **attributes: Any) -> Callable[[options.Decorated], options.Decorated]:
    """An option that stays None where it is not given; the help shows the default of its field."""
    field = name.partition("/")[0].removeprefix("--").replace("-", "_")
    default = DEFAULTS.get(FIELDS.get(field, field))
    shown = (
        {"show_default": f"{default:g}" if isinstance(default, float) else str(default)} if default else {}
    )
    return options.option(name, **{"default": None, "show_default": False, **shown, **attributes})


@options.command()
@option(
    "--method", metavar="NAME", help="none, logit, feature, cwd, ...; README lists all.", show_default=False
)
@option(
    "--source",
    type=click.Choice(SOURCES),
    help="Of the teacher's outputs.",
    show_default="cache; none for method none",
)
@option("--store", metavar="URL|NAME", help="The store.", show_default="the newest that fits, under the home")
@options.home_option
@options.dataset_options(required=False, split=None)
@option("--split", metavar="SPLIT", help="Split to train on, where no store says it.")
@option("--eval-split", metavar="SPLIT", help="Split of the scores; '' for none.")
@option("--fresh-views", is_flag=True, help="Draw new views for ever; for --source none and online.")
@option("--passes", type=options.COUNT, help="Take the store's first N passes alone.", show_default="all")
@option(
    "--follow",
    is_flag=True,
    help="Take in, at an epoch's end, passes that builders have completed since.",
)
@options.view_options("recipe", "crop", "scale_min", "scale_max", "flip", "photometric", "cat_max_ratio")
@option("--teacher", metavar="NAME", help="The teacher of --source online, as `build` takes it.")
@option("--weights", metavar="PATH|URL|auto", help="Its weights.")
@option("--precision", type=click.Choice(["float32", "bfloat16", "float16"]), help="Its precision.")
@option("--student", metavar="NAME", help="The network to train.")
@option(
    "--preset",
    metavar="NAME",
    help="Traits of the student: kdcache, mmseg, cirkd, semseg or skd.",
    show_default="kdcache",
)
@option("--backbone-weights", metavar="imagenet|none|PATH", help="What the student's backbone starts from.")
@option(
    "--budget",
    type=options.duration,
    metavar="DURATION",
    help="Train this long; evaluation and checkpoints not counted.",
)
@option(
    "--steps",
    type=options.COUNT,
    help="Train so many steps.",
    show_default=f"{DEFAULT_STEPS}, where no length is given",
)
@option("--epochs", type=options.COUNT, help="Train so many epochs, each one view of every image.")
@option("--batch-size", type=options.COUNT, help="Crops a step, over all processes.")
@option("--lr", type=float, help="Learning rate at the start.")
@option("--momentum", type=float, help="Of SGD.")
@option("--weight-decay", type=float, help="Of SGD.")
@option("--head-lr-factor", type=float, help="Learning rate of the heads over the backbone's.")
@option(
    "--schedule", type=click.Choice(list(SCHEDULES)), help="Of the learning rate, over the fraction spent."
)
@option("--power", type=float, help="Exponent of poly.")
@option("--min-lr", type=float, help="Learning rate at the end.")
@option("--temperature", type=float, help="Softmax temperature.", show_default="the method's")
@option("--kd-weight", type=float, help="Factor of all weights of the method.")
@option(
    "--kd-terms",
    metavar="TERM=WEIGHT,...",
    help="Weights of single terms; 0 leaves a term out.",
    show_default="the method's",
)
@option("--logit-weight", type=float, help="Weight of the logit term.", show_default="the method's")
@option("--feature-weight", type=float, help="Weight of the feature term.", show_default="the method's")
@option("--aux-weight", type=float, help="Weight of the auxiliary head's cross-entropy.")
@option("--kd-ignore", type=click.Choice(KD_IGNORES), help="What distillation leaves out.")
@option("--mixed-precision", type=click.Choice(MIXED_PRECISIONS), help="Of the student.")
@option(
    "--compile",
    is_flag=True,
    help="Compile the student's forward pass and loss: minutes, then quicker steps.",
)
@option(
    "--warm-up",
    type=click.Choice(WARM_UPS),
    help="What of a start counts as training: the first steps, compiling too (all), or none of it.",
)
@option("--device", type=click.Choice(["auto", "cpu"]), help="`auto` takes an accelerator if there is one.")
@option(
    "--workers", type=options.WHOLE, help="Processes that read and cut crops.", show_default="by the cores"
)
@option(
    "--seed", type=options.WHOLE, help="Of the student's start, the order and fresh views.", show_default="0"
)
@option("--pool-units", type=options.COUNT, help="Units that one shuffle pool spans.")
@option(
    "--check-crops",
    type=click.Choice(list(CROP_CHECKS)),
    help="Compare replayed crops with the store's digests.",
)
@option(
    "--cache-limit",
    type=options.byte_count,
    metavar="SIZE",
    help="What shards of a store that is not on this host may take of its disk.",
    show_default=bytes_text(DEFAULT_CACHE_LIMIT_BYTES),
)
@option("--profile", is_flag=True, help="Show where a step's time goes, and keep a trace of a few steps.")
@option("--log-every", type=options.COUNT, metavar="STEPS", help="Steps between lines of metrics.")
@option(
    "--gradnorm-every", type=options.WHOLE, metavar="STEPS", help="Steps between gradient norms; 0 for never."
)
@option(
    "--eval-every",
    type=options.WHOLE,
    metavar="STEPS",
    help="Steps between scores.",
    show_default="once, at the end",
)
@option("--eval-mode", type=click.Choice(EVALUATION_MODES), help="Whole image, or sliding windows.")
@option(
    "--save-every",
    type=options.steps_or_duration,
    metavar="STEPS|DURATION",
    help="Between checkpoints.",
    show_default="5m",
)
@option("--out", metavar="DIR", help="The run's folder.", show_default="runs/METHOD-STUDENT")
@options.option(
    "--resume", is_flag=True, help="Go on with the run in --out; options are its own where not given."
)
@options.json_option
@click.pass_obj
def command(console: Console, /, home: str, resume: bool, **given: Any) -> None:
    """Train a student, from a store or with its teacher running along.

    One of --budget, --steps and --epochs says how long. Without --store the home's newest store is taken; --dataset
    narrows the choice. With --fresh-views no store is needed for --method none and --source online. --resume begins
    the run where there is none yet.

    Of a store that is not on this host, shards are fetched whole and ahead of their use, checked, and kept under
    $KDCACHE_CACHE/shards (~/.cache/kdcache/shards) for all runs of the host; beyond --cache-limit the least recently
    used go.
    """
    config = make_config(console, home, resume, given)
    from kdcache.distill.training.loop import train

    with console.progress(config.method) as progress:
        result = train(config, resume=resume, progress=progress)
    _show(console, config, result)


def make_config(console: Console, /, home: str, resume: bool, given: dict[str, Any]) -> TrainConfig:
    """The run that the options ask for, on top of the resumed run's own configuration."""
    asked = config_fields(given)
    before = _resumed(asked) if resume else {}
    if any(name in asked for name in LENGTHS):
        before = {name: value for name, value in before.items() if name not in LENGTHS}
    merged = {**before, **asked}
    if "method" not in merged:
        raise UsageError("--method is missing", hint="--method none, logit, feature, cwd, ...")
    merged.setdefault("source", "none" if merged["method"] == "none" else "cache")
    merged |= recipe_fields(merged.get("recipe", ""), merged)
    merged.setdefault("out", _default_out(merged))
    if all(merged.get(name) is None for name in LENGTHS):
        merged["steps"] = DEFAULT_STEPS
    if "store" in asked or not (merged.get("store") or merged.get("fresh_views")):
        targets = needs(merged) if merged["source"] == "cache" else ()
        merged["store"] = store_for_run(console, home, asked.get("store"), merged.get("dataset"), targets)
    if merged.get("store") and merged.get("recipe") in RECIPES:
        # The views are the store's, and all that it sets for training stands field by field.
        del merged["recipe"]
    return TrainConfig.from_dict(merged)


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


def _resumed(asked: dict[str, Any]) -> dict[str, Any]:
    from kdcache.distill.runfolder import CONFIG, read_json

    out = asked.get("out") or ("method" in asked and _default_out(asked))
    if not out:
        raise UsageError("--resume needs the run's folder", hint="--out DIR")
    path = Path(out, CONFIG)
    if path.exists():
        return {**read_json(path), "out": out}
    if "method" not in asked:
        raise NotFoundError(f"no run in {out} to go on with", hint="with --method one is begun there")
    return {}


def _default_out(values: dict[str, Any]) -> str:
    return f"runs/{values['method']}-{values.get('student', DEFAULTS['student'])}"


def store_for_run(
    console: Console, home: str, store: str | None, dataset: str | None, targets: tuple[str, ...]
) -> str:
    """URL of the store that was named, or of the home's newest one, before others one that holds the targets."""
    from kdcache.cli.home import choose_store, describe, find_store

    if store is not None:
        return find_store(home, store).url
    chosen = choose_store(home, dataset=dataset, trainable=True, targets=targets)
    console.note(f"store {describe(chosen)}")
    return chosen.url


def needs(run: dict[str, Any]) -> tuple[str, ...]:
    """Targets that the run takes from its store."""
    from kdcache.distill.losses.methods import method_needs
    from kdcache.distill.losses.terms import LABELS, LossConfig

    known = {field.name for field in fields(LossConfig)}
    config = LossConfig(**{name: value for name, value in run.items() if name in known})
    return tuple(need for need in method_needs(run["method"], config) if need != LABELS)


def _show(console: Console, config: TrainConfig, result: "RunResult") -> None:
    profile = _profile(result.out) if config.profile else {}
    if console.json:
        console.document({**asdict(result), **({"profile": profile} if profile else {})})
        return
    scores = result.scores or {}
    percent = {"mIoU": scores.get("miou"), "pixel accuracy": scores.get("pixel_accuracy")}
    console.fields(
        {
            "run": result.out,
            "steps": _steps_text(config, result),
            **{name: f"{100 * value:.2f} %" for name, value in percent.items() if value is not None},
            "report": f"{result.out}/report.md",
        }
    )
    if profile:
        total = sum(profile.values())
        console.line("")
        console.table(
            ["part of a step", "seconds", "%"],
            [[words, f"{seconds:.4f}", f"{100 * seconds / total:.1f}"] for words, seconds in profile.items()],
        )


def _profile(out: str) -> dict[str, float]:
    from kdcache.distill.report.record import RunRecord

    return RunRecord.read(Path(out)).profile()


def _steps_text(config: TrainConfig, result: "RunResult") -> str:
    text = f"{result.steps} in {duration_text(result.training_s)}"
    if result.was_complete:
        return f"{text}, nothing was left to do"
    if result.ended_by_clock:
        return f"{text}: the time was up before the {result.planned_steps} that were planned"
    return text if config.budget_seconds is None else f"{text}; --steps {result.steps} repeats them"
