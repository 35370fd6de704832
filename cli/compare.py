"""`kdcache compare`: every method under one clock.

    kdcache compare --methods none,logit,feature --budget 1h --seeds 3
    kdcache compare --methods none,logit --views 1,2,4 --online logit --weights auto --budget 30m
    kdcache compare --methods none,logit,cwd --budget 30m,1h,2h,4h --dry-run

What training itself is asked are the options of `kdcache distill`, with its defaults.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cache.errors import IncompleteError, StoreMismatchError, UsageError
from kdcache.cli import distill, options
from kdcache.cli.options import option
from kdcache.cli.output import Console
from kdcache.cli.report import read_teacher_scores
from kdcache.distill.units import duration_text, parse_duration

if TYPE_CHECKING:
    from kdcache.distill.compare.contest import Contest
    from kdcache.distill.compare.standings import Standings

# Options of `distill` that a comparison sets run by run, has of its own, or leaves to the store; --kd-terms says what the
# last two say.
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


@options.command()
@option(
    "--methods",
    type=options.names,
    metavar="NAME,...",
    required=True,
    help="As `distill --method` takes them.",
)
@option(
    "--budget",
    type=options.names,
    metavar="DURATION,...",
    help="Training time of each run, or several; 8dh are device-hours, shared by --processes.",
)
@option(
    "--steps",
    type=counts,
    metavar="N,...",
    help="Steps of each run, or several.",
    show_default="what the baseline reaches in each budget",
)
@option(
    "--clock",
    type=options.names,
    metavar="time,steps",
    help="Equal time, equal steps, or both.",
    show_default="both; steps without --budget",
)
@option(
    "--seeds", type=options.COUNT, default=1, help="Runs of each method, paired over methods by their seed."
)
@option("--online", type=options.names, metavar="NAME,...", help="Methods whose teacher runs along too.")
@option(
    "--views",
    type=counts,
    metavar="N,...",
    help="Rows of each method with so many passes of the store.",
    show_default="all passes, in one row",
)
@option(
    "--fresh-views/--no-fresh-views",
    default=True,
    help="`none` draws fresh views, and a second row of it has the store's; or the store's alone.",
)
@option("--processes", type=options.COUNT, default=1, help="Of each run, one a GPU: `accelerate launch`.")
@option(
    "--teacher-run", metavar="RUN|FILE", help="The teacher's scores: its run, or what `evaluate --json` said."
)
@option("--recipe", metavar="NAME", help="A whole training recipe, as paper-cityscapes; README lists all.")
@training_options
@option("--out", metavar="DIR", default="runs/comparison", help="The comparison's folder.")
@option("--dry-run", is_flag=True, help="Say what would run, in which order and how long; train nothing.")
@options.json_option
@click.pass_obj
def command(console: Console, /, home: str, dry_run: bool, **given: Any) -> None:
    """Train every method for the same time and for the same number of steps, and rank them on both clocks.

    Runs are in processes of their own, in an order drawn anew for every seed and length, and the baseline is repeated
    at the end. The same command again goes on where it was; failed runs are tried once more. With other methods, more
    seeds or other lengths it extends the comparison in --out: what stands is kept, what is missing is run, and the
    report covers all. Exit code 3: some failed.
    """
    from kdcache.distill.compare.referee import enter, read_contest, run_contest
    from kdcache.distill.compare.report import TEACHER, write_standings
    from kdcache.distill.report.sample_files import copy_sample_files

    out, teacher_run = Path(given.pop("out")), given["teacher_run"]
    asked = make_contest(console, home, given)
    if dry_run:
        _show_plan(console, read_contest(out, asked), out)
        return
    contest = enter(out, asked)
    _say_what_stands(console, contest, asked, out)
    if teacher_run:
        copy_sample_files(Path(teacher_run), out / TEACHER)
    try:
        run_contest(out, contest, console.note)
    finally:
        standings = write_standings(out)
    _show(console, standings, out)
    if standings.failed:
        names = ", ".join(account.start.name for account in standings.failed)
        raise IncompleteError(
            f"{len(standings.failed)} of {len(standings.accounts)} runs failed: {names}",
            hint=f"{out}/report.html says why; the same command tries them again",
        )


def make_contest(console: Console, /, home: str, given: dict[str, Any]) -> "Contest":
    """What the options ask for."""
    from kdcache.cache.store.opening import open_store
    from kdcache.distill.compare.contest import BASELINE, CLOCKS, Ask, Contest, make_contenders, make_rungs
    from kdcache.distill.losses.methods import find_method

    own = ("methods", "budget", "steps", "clock", "seeds", "online", "views", "fresh_views", "processes")
    asked = {name: given.pop(name) for name in own}
    teacher_run = given.pop("teacher_run")
    for name in (*asked["methods"], *(asked["online"] or ())):
        find_method(name)
    if unknown := set(asked["clock"] or ()) - set(CLOCKS):
        raise UsageError(f"--clock: unknown clock {min(unknown)!r}", hint="time, steps, or time,steps")
    if BASELINE in (asked["online"] or ()):
        raise UsageError("--online none: it asks no teacher", hint="--online logit")
    budgets_s = [_budget_s(text, asked["processes"]) for text in asked["budget"] or ()]
    run, needs = _shared_fields(console, home, given, asked["methods"])
    store = open_store(run["store"])
    passes = len(store.complete_passes([need for need in needs if need in store.spec.targets]))
    if asked["views"] and passes < max(asked["views"]):
        raise StoreMismatchError(
            f"--views {max(asked['views'])}: {run['store']} has {passes} complete passes",
            hint=f"kdcache build --views {max(asked['views'])} adds passes to it",
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
    from kdcache.distill.losses.methods import own_options
    from kdcache.distill.recipes import RECIPES, recipe_fields

    run = distill.config_fields(given)
    recipe = run.pop("recipe", None)
    if recipe is not None and recipe not in RECIPES:
        raise UsageError(
            f"--recipe: no recipe for training is named {recipe!r}", hint=f"one of: {', '.join(RECIPES)}"
        )
    run |= recipe_fields(recipe or "", run)
    run.pop("steps", None)
    _require_known_terms(run.get("kd_terms", ""), methods)
    asked = [{**own_options(method, run), "method": method} for method in methods]
    needs = tuple(dict.fromkeys(need for of_method in asked for need in distill.needs(of_method)))
    run["store"] = distill.store_for_run(console, home, run.get("store"), run.get("dataset"), needs)
    return run, needs


def _require_known_terms(weights: str, methods: Sequence[str]) -> None:
    """Each method takes the weights of its own terms; raises UsageError for one that no method has."""
    from kdcache.distill.config import parse_weights
    from kdcache.distill.losses.methods import find_method

    known = dict.fromkeys(term for method in methods for term in find_method(method))
    if unknown := [term for term in parse_weights(weights) if term not in known]:
        raise UsageError(
            f"--kd-terms: no method has a term {unknown[0]!r}",
            hint=f"they have: {', '.join(known) or 'none'}",
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
    """What each complete pass took to build, at the pace that the last unit has on record; empty where none is."""
    from kdcache.cache.build.disk_space import recorded_pace

    pace = recorded_pace(store)
    return [] if pace is None else [pace * store.spec.dataset.images for _ in store.complete_passes()]


def _say_what_stands(console: Console, contest: "Contest", asked: "Contest", out: Path) -> None:
    """What was there before this command, where something was."""
    from kdcache.distill.compare.referee import is_done

    starts = contest.starts()
    if done := sum(is_done(out, start) for start in starts):
        console.note(f"{done} of {len(starts)} runs are complete in {out}")
    if contest.passes and asked.passes and contest.passes < asked.passes:
        console.note(
            f"the store has {asked.passes} complete passes by now; the comparison keeps to the {contest.passes} that it "
            "was begun with"
        )


def _show_plan(console: Console, contest: "Contest", out: Path) -> None:
    from kdcache.distill.compare.referee import is_done

    starts = contest.starts()
    left = [start for start in starts if not is_done(out, start)]
    if console.json:
        runs = [
            {
                "name": start.name,
                "budget_s": start.rung.budget_s,
                "steps": start.rung.steps,
                "complete": start not in left,
            }
            for start in starts
        ]
        console.document({"contest": contest.to_dict(), "runs": runs})
        return
    console.table(
        ["run", "name", "training"],
        [
            [number, start.name, _length_text(start.rung) if start in left else "complete"]
            for number, start in enumerate(starts, start=1)
        ],
    )
    timed = [start.rung.budget_s for start in left if start.rung.budget_s is not None]
    counted = sum(start.rung.steps is not None for start in left)
    said = [f"{len(left)} of {len(starts)} runs left"]
    if timed:
        longer = ", longer where a step takes longer than the baseline's" if "steps" in contest.clocks else ""
        said.append(f"about {duration_text(sum(timed))} of training{longer}")
    if counted:
        said.append(f"{counted} runs of steps that are not timed yet")
    console.line("")
    console.line("; ".join([*said, "start-up and evaluation come on top"]))


def _length_text(rung: Any) -> str:
    if rung.steps is not None:
        return f"{rung.steps} steps"
    text = duration_text(rung.budget_s)
    return text if rung.clock == "time" else f"the baseline's steps in {text}"


def _show(console: Console, standings: "Standings", out: Path) -> None:
    from kdcache.distill.compare.report import make_report
    from kdcache.distill.report.terminal import show

    if console.json:
        console.document({"report": f"{out}/report.html", **standings.to_dict()})
        return
    show(make_report(out, standings), console)
    console.line(f"report: {out}/report.html")
