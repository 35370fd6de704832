"""`kdcache compare`: every method under one clock.

    kdcache compare --methods none,logit,feature --budget 1h --seeds 3
    kdcache compare --methods none,logit --views 1,2,4 --online logit --weights auto --budget 30m
    kdcache compare --methods none,logit,cwd --budget 30m,1h,2h,4h --dry-run

The options of the training itself are those of `kdcache distill`, with the same defaults.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cache.errors import IncompleteError, StoreMismatchError, UsageError, unknown_name
from kdcache.cli import distill, names, options
from kdcache.cli.options import option
from kdcache.cli.output import Console
from kdcache.cli.price import ask_about_price, say_price, show_plan
from kdcache.cli.report import read_teacher_scores
from kdcache.cli.training import config_fields
from kdcache.distill.units import parse_duration

if TYPE_CHECKING:
    from kdcache.distill.compare.contest import Contest
    from kdcache.distill.compare.standings import Standings

# Options of `distill` that a comparison sets run by run, defines itself, or leaves to the store; --kd-terms does what the
# last two do.
NOT_SHARED = frozenset(
    {
        *("method", "source", "fresh_views", "passes", "budget", "steps", "epochs", "seed", "out", "resume"),
        *("recipe", "split", "crop", "scale_min", "scale_max", "flip", "photometric", "cat_max_ratio"),
        *("profile", "logit_weight", "feature_weight"),
    }
)
DEVICE_HOURS = "dh"


def training_options(function: options.Decorated) -> options.Decorated:
    """The options of `kdcache distill` that all runs of a comparison share."""
    shared = [p for p in distill.command.params if p.name not in NOT_SHARED and p.expose_value]
    held: list[click.Parameter] = getattr(function, "__click_params__", [])
    function.__click_params__ = [*held, *reversed(shared)]  # type: ignore[attr-defined]
    return function


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them, each at least 1."""
    found = options.names(text)
    if not all(name.isdigit() and int(name) for name in found):
        raise click.BadParameter(f"{text!r} is not a list of numbers, such as 1,2,4")
    return tuple(int(name) for name in found)


@options.command(
    examples=[
        "kdcache compare --methods none,logit,feature --budget 20m --dry-run",
        "kdcache compare --methods none,logit,feature --budget 1h --seeds 3",
        "kdcache compare --methods none,logit --steps 2000 --views 1,2,4",
    ]
)
@option(
    "--methods",
    group="method",
    type=options.method_names,
    metavar="NAME,...",
    required=True,
    help=f"Methods to compare: {names.listed(names.METHODS)}. Name `none` to compare with labels alone.",
)
@option(
    "--online",
    group="method",
    type=options.method_names,
    metavar="NAME,...",
    help="Methods to train with the teacher running at every step too, over fresh views.",
)
@option(
    "--seeds",
    group="method",
    type=options.COUNT,
    default=1,
    help="Number of runs of each method. Runs with the same seed are compared with each other.",
)
@option(
    "--views",
    group="views",
    type=counts,
    metavar="N,...",
    help="Train each method on the first N passes of the store, for each N.",
    show_default="all passes, once",
)
@option(
    "--fresh-views/--no-fresh-views",
    group="views",
    default=True,
    help="Train `none` twice: on fresh views and on the store's. Without fresh views, on the store's alone.",
)
@option(
    "--budget",
    group="length",
    type=options.names,
    metavar="DURATION,...",
    help="Training time of each run, or several: 30m,1h. 8dh are 8 device-hours, shared by --processes.",
)
@option(
    "--steps",
    group="length",
    type=counts,
    metavar="N,...",
    help="Number of steps of each run, or several.",
    show_default="those that the baseline reaches in each budget",
)
@option(
    "--clock",
    group="length",
    type=options.names,
    metavar="time,steps",
    help="Compare at equal time, at equal steps, or both.",
    show_default="both; steps if there is no --budget",
)
@option(
    "--processes",
    group="machine",
    type=options.COUNT,
    default=1,
    help="Number of processes of each run, one for each GPU, started by `accelerate launch`.",
)
@option(
    "--teacher-run",
    group="data",
    metavar="RUN|FILE",
    help="The teacher's scores: the folder of its run, or a file with the output of `kdcache evaluate --json`.",
)
@option(
    "--recipe",
    group="views",
    metavar="NAME",
    help=f"Training recipe, for a store that was built with the same --recipe: {names.listed(names.RECIPES)}.",
)
@training_options
@option("--out", group="output", metavar="DIR", default="runs/comparison", help="Folder of the comparison.")
@option(
    "--dry-run", is_flag=True, help="List the runs in their order and say how long they take; train nothing."
)
@option("--yes", is_flag=True, help="Start without asking, even if it takes more than an hour.")
@options.json_option
@click.pass_obj
def command(console: Console, /, home: str, dry_run: bool, yes: bool, **given: Any) -> None:
    """Train several methods for the same time and for the same number of steps, and rank them on both clocks.

    Each run is a process of its own. For every seed and length the order is drawn anew, and the baseline is repeated at
    the end. The same command continues an interrupted comparison and tries failed runs once more. With other methods,
    more seeds or other lengths it extends the comparison in --out: finished runs are kept, missing ones are trained, and
    the report covers all. Exit code 3: some runs failed.
    """
    console.starting("loading PyTorch ...")
    from kdcache.distill.compare.referee import enter, read_contest, run_contest
    from kdcache.distill.compare.report import TEACHER, write_standings
    from kdcache.distill.report.sample_files import copy_sample_files

    out, teacher_run = Path(given.pop("out")), given["teacher_run"]
    asked = make_contest(console, home, given)
    planned = read_contest(out, asked)
    if dry_run:
        show_plan(console, planned, out)
        console.next("kdcache", "compare", *options.typed(console.args, command, without={"dry_run"}))
        return
    say_price(console, planned, out)
    if not yes:
        ask_about_price(planned, out)
    contest = enter(out, asked)
    _say_what_is_done(console, contest, asked, out)
    if teacher_run:
        copy_sample_files(Path(teacher_run), out / TEACHER)
    try:
        run_contest(out, contest, console.note)
    finally:
        standings = write_standings(out)
    _show(console, standings, out)
    if standings.failed:
        failed = ", ".join(account.start.name for account in standings.failed)
        raise IncompleteError(
            f"{len(standings.failed)} of {len(standings.accounts)} runs failed: {failed}",
            hint=f"{out}/report.html says why; the same command tries them again",
        )
    _say_where_to_look(console, out / "report.html")


def make_contest(console: Console, /, home: str, given: dict[str, Any]) -> "Contest":
    """The contest that the options ask for."""
    from kdcache.cache.store.opening import open_store
    from kdcache.distill.compare.contest import BASELINE, CLOCKS, Ask, Contest, make_contenders, make_rungs

    own = ("methods", "budget", "steps", "clock", "seeds", "online", "views", "fresh_views", "processes")
    asked = {name: given.pop(name) for name in own}
    teacher_run = given.pop("teacher_run")
    if unknown := set(asked["clock"] or ()) - set(CLOCKS):
        raise UsageError(f"--clock: unknown clock {min(unknown)!r}", hint="time, steps, or time,steps")
    if BASELINE in (asked["online"] or ()):
        raise UsageError("--online none: `none` does not use a teacher", hint="--online logit")
    budgets_s = [_budget_s(text, asked["processes"]) for text in asked["budget"] or ()]
    run, needs = _shared_fields(console, home, given, asked["methods"])
    store = open_store(run["store"])
    passes = len(store.complete_passes([need for need in needs if need in store.spec.targets]))
    if asked["views"] and passes < max(asked["views"]):
        raise StoreMismatchError(
            f"--views {max(asked['views'])}: {run['store']} has {passes} complete passes",
            hint=f"the command that built this store adds passes to it with --views {max(asked['views'])}",
        )
    scores = read_teacher_scores("--teacher-run", teacher_run) if teacher_run else {}
    ask = Ask(
        contenders=make_contenders(
            asked["methods"],
            online=asked["online"] or (),
            views=asked["views"] or (),
            fresh_views=asked["fresh_views"],
        ),
        rungs=make_rungs(budgets_s, asked["steps"] or (), asked["clock"] or ()),
        seeds=tuple(range(asked["seeds"])),
    )
    return Contest(
        asks=(ask,),
        run=run,
        store_key=store.spec.key,
        passes=None if run.get("follow") else passes or None,
        processes=asked["processes"],
        teacher={**scores, "name": store.spec.teacher["name"], "build_s": _build_seconds(store)},
    )


def _shared_fields(
    console: Console, home: str, given: dict[str, Any], methods: Sequence[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields of TrainConfig that all runs have, which are those given, the recipe's and the store's URL; targets they need."""
    from kdcache.distill.losses.methods import applicable_options
    from kdcache.distill.recipes import RECIPES, recipe_fields

    run = config_fields(given)
    recipe = run.pop("recipe", None)
    if recipe is not None and recipe not in RECIPES:
        raise unknown_name("recipe for training", recipe, RECIPES)
    run |= recipe_fields(recipe or "", run)
    run.pop("steps", None)
    _require_known_terms(run.get("kd_terms", ""), methods)
    asked = [{**applicable_options(method, run), "method": method} for method in methods]
    needs = tuple(dict.fromkeys(need for of_method in asked for need in distill.needs(of_method)))
    run["store"] = distill.store_for_run(console, home, run.get("store"), run.get("dataset"), needs)
    return run, needs


def _require_known_terms(weights: str, methods: Sequence[str]) -> None:
    """Raises UsageError for a term that none of the methods has. Each method uses the weights of its own terms."""
    from kdcache.distill.config import parse_weights
    from kdcache.distill.losses.methods import find_method

    known = dict.fromkeys(term for method in methods for term in find_method(method))
    if unknown := [term for term in parse_weights(weights) if term not in known]:
        raise UsageError(
            f"--kd-terms: none of these methods has a term {unknown[0]!r}",
            hint=f"their terms: {', '.join(known) or 'none'}",
        )


def _budget_s(text: str, processes: int) -> float:
    """Seconds of training in "2h", or in "16dh": device-hours, which all processes of a run share."""
    try:
        if text.endswith(DEVICE_HOURS):
            return parse_duration(text.removesuffix(DEVICE_HOURS) + "h") / processes
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--budget: {error}", hint="--budget 30m,2h, or 16dh for device-hours") from None


def _build_seconds(store: Any) -> list[float]:
    """Seconds that each complete pass took to build, at the recorded pace of the last unit; empty if there is none."""
    from kdcache.cache.build.disk_space import recorded_pace

    pace = recorded_pace(store)
    return [] if pace is None else [pace * store.spec.dataset.images for _ in store.complete_passes()]


def _say_what_is_done(console: Console, contest: "Contest", asked: "Contest", out: Path) -> None:
    """What an earlier command has done, if there was one."""
    from kdcache.distill.compare.referee import is_done

    starts = contest.starts()
    if done := sum(is_done(out, start) for start in starts):
        console.note(f"{done} of {len(starts)} runs are complete in {out}")
    if contest.passes and asked.passes and contest.passes < asked.passes:
        console.note(
            f"the store has {asked.passes} complete passes by now; this comparison keeps to the {contest.passes} that the "
            "store had when it began"
        )


def _say_where_to_look(console: Console, page: Path) -> None:
    """The command that opens the page, where this machine has one: a server has none."""
    opener = {"darwin": "open"}.get(sys.platform, "xdg-open")
    if shutil.which(opener):
        console.next(opener, page)
    elif not console.json:
        console.note(f"next: open {page} in a browser")


def _show(console: Console, standings: "Standings", out: Path) -> None:
    from kdcache.distill.compare.report import make_report
    from kdcache.distill.report.terminal import show

    if console.json:
        console.document({"report": f"{out}/report.html", **standings.to_dict()})
        return
    show(make_report(out, standings), console)
    console.line(f"report: {out}/report.html")
