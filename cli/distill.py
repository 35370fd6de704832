"""`kdcache distill`: train a student, from a store or with its teacher running at every step.

kdcache distill --method logit --budget 2h                                  # the home's newest store
kdcache distill --method none --dataset streets:96x192:40 --fresh-views --steps 20 --backbone-weights none
accelerate launch -m kdcache.cli distill --method feature --store stores/NAME --epochs 40
"""

import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cache.errors import NotFoundError, StoreNotFoundError, UsageError
from kdcache.cli import names, options
from kdcache.cli.output import Console
from kdcache.cli.training import DEFAULTS, config_fields, train_options
from kdcache.distill.config import DEFAULT_STEPS, TrainConfig
from kdcache.distill.recipes import RECIPES, recipe_fields
from kdcache.distill.units import duration_text

if TYPE_CHECKING:
    from kdcache.distill.training.results import RunResult

LENGTHS = ("budget_seconds", "steps", "epochs")
_UNSCORED = "none: no evaluation was asked for (--eval-split '')"


@options.command(
    examples=[
        "kdcache distill --method logit --budget 2h",
        "kdcache distill --method feature --store stores/NAME --epochs 40 --out runs/feature",
        "kdcache distill --method none --dataset streets:96x192:40 --fresh-views --steps 20 --backbone-weights none",
        "kdcache distill --method logit --source online --teacher pspnet_resnet101 --dataset cityscapes --fresh-views",
        "accelerate launch -m kdcache.cli distill --method logit --budget 2h",
    ]
)
@train_options
@options.json_option
@click.pass_obj
def command(console: Console, /, home: str, resume: bool, **given: Any) -> None:
    """Train a student from a store, or with the teacher running at every step.

    Give the length by one of --budget, --steps and --epochs. Without --store the newest store of the home is used, and
    --dataset narrows the choice. --method none and --source online need no store with --fresh-views. With --resume the
    run starts from the beginning if --out does not contain one yet.

    Shards of a store on another host are fetched whole, before they are needed, and checked. They stay under
    $KDCACHE_CACHE/shards (~/.cache/kdcache/shards) for all runs on this host. Beyond --cache-limit the least recently
    used ones are removed.
    """
    console.starting("loading PyTorch ...")
    config = make_config(console, home, resume, given)
    from kdcache.distill.training.loop import train

    with console.progress(config.method) as progress:
        result = train(config, resume=resume, progress=progress)
    _show(console, config, result)
    console.next("kdcache", "report", result.out)


def make_config(console: Console, /, home: str, resume: bool, given: dict[str, Any]) -> TrainConfig:
    """The run that the options ask for, on top of the resumed run's own configuration."""
    asked = config_fields(given)
    before = _resumed(asked) if resume else {}
    if any(name in asked for name in LENGTHS):
        before = {name: value for name, value in before.items() if name not in LENGTHS}
    merged = {**before, **asked}
    if "method" not in merged:
        raise UsageError("--method is missing", hint=f"one of: {', '.join(names.METHODS)}")
    merged.setdefault("source", "none" if merged["method"] == "none" else "cache")
    merged |= recipe_fields(merged.get("recipe", ""), merged)
    merged.setdefault("out", _default_out(merged))
    if all(merged.get(name) is None for name in LENGTHS):
        merged["steps"] = DEFAULT_STEPS
    if "store" in asked or not (merged.get("store") or merged.get("fresh_views")):
        targets = needs(merged) if merged["source"] == "cache" else ()
        try:
            merged["store"] = store_for_run(console, home, asked.get("store"), merged.get("dataset"), targets)
        except StoreNotFoundError as error:
            if merged["source"] == "cache":
                raise
            dataset = "" if merged.get("dataset") else " --dataset NAME"
            hint = f"add{dataset} --fresh-views to train without a store; or {error.hint}"
            raise StoreNotFoundError(str(error), hint=hint) from None
    if merged.get("store") and merged.get("recipe") in RECIPES:
        # The views are the store's, and all that the recipe sets for training is in the other fields by now.
        del merged["recipe"]
    return TrainConfig.from_dict(merged)


def _resumed(asked: dict[str, Any]) -> dict[str, Any]:
    from kdcache.distill.runfolder import CONFIG, read_json

    out = asked.get("out") or ("method" in asked and _default_out(asked))
    if not out:
        raise UsageError("--resume needs the run's folder", hint="--out DIR")
    path = Path(out, CONFIG)
    if path.exists():
        return {**read_json(path), "out": out}
    if "method" not in asked:
        raise NotFoundError(
            f"no run in {out} to continue",
            hint=f"kdcache distill --method NAME --out {shlex.quote(out)} begins one",
        )
    return {}


def _default_out(values: dict[str, Any]) -> str:
    return f"runs/{values['method']}-{values.get('student', DEFAULTS['student'])}"


def store_for_run(
    console: Console, home: str, store: str | None, dataset: str | None, targets: tuple[str, ...]
) -> str:
    """URL of the store that was named, or of the home's newest one; those that contain the targets come first."""
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
            **({} if result.scores else {"score": _UNSCORED}),
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
        return f"{text}; the run was complete already"
    if result.ended_by_clock:
        return f"{text}: the time was up before the {result.planned_steps} steps that were planned"
    return text if config.budget_seconds is None else f"{text}; --steps {result.steps} repeats this run"
