"""Made-up comparisons with known numbers: folders as `kdcache compare` writes them, without any training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.distill.compare.contest import ATTEMPTS, COMPARISON, RUNS, Ask, Contender, Contest, Rung, Start

NONE = Contender(method="none", source="none", fresh_views=True)
BANK = Contender(method="none", source="none")
LOGIT = Contender(method="logit")
FEATURE = Contender(method="feature")
ONLINE = Contender(method="logit", source="online", fresh_views=True)

CLASSES = ("road", "car", "sky")
STEP_S = {"none": 0.5, "none-bank": 0.5, "logit": 0.625, "feature": 1.0, "logit-online": 2.0}
MIOU = {"none": 0.5, "none-bank": 0.48, "logit": 0.6, "feature": 0.55, "logit-online": 0.58}
STARTUP_S, EVALUATION_S, SAVING_S, WAIT_SHARE = 7.0, 3.0, 1.0, 0.1


def make_ask(
    contenders: Sequence[Contender], *, budgets_s: Sequence[float] = (100.0,), seeds: Sequence[int] = (0,)
) -> Ask:
    """On both clocks."""
    timed = [Rung(clock="time", budget_s=budget) for budget in budgets_s]
    counted = [Rung(clock="steps", budget_s=budget) for budget in budgets_s]
    return Ask(contenders=tuple(contenders), rungs=(*timed, *counted), seeds=tuple(seeds))


def make_contest(
    contenders: Sequence[Contender] = (NONE, BANK, LOGIT, FEATURE, ONLINE),
    *,
    budgets_s: Sequence[float] = (100.0,),
    seeds: Sequence[int] = (0, 1, 2),
) -> Contest:
    return Contest(
        asks=(make_ask(contenders, budgets_s=budgets_s, seeds=seeds),),
        run={"store": "stores/ab", "dataset": "", "teacher": "pspnet_resnet101", "backbone_weights": "none"},
        store_key="0123456789ab",
        passes=2,
        teacher={"name": "pspnet_resnet101", "miou": 0.8, "pixel_accuracy": 0.95, "build_s": [300.0, 300.0]},
    )


def make_comparison(folder: Path, contest: Contest, *, failed: Mapping[str, str] | None = None) -> Path:
    """All runs finished, but for the `failed` ones: run -> error."""
    folder.mkdir(parents=True)
    _write(folder / COMPARISON, contest.to_dict())
    attempts = []
    for start in contest.starts():
        error = (failed or {}).get(start.name)
        attempt = {"run": start.name, "began": "2026-01-02T03:04:05Z", "exit_code": 1 if error else 0}
        wall_s = 2.0 if error else make_run(folder / RUNS / start.name, contest, start)
        attempts.append({**attempt, "wall_s": wall_s, "error": error, "hint": None})
    (folder / ATTEMPTS).write_text("".join(json.dumps(line) + "\n" for line in attempts))
    return folder


def make_run(folder: Path, contest: Contest, start: Start) -> float:
    """A finished run with the numbers above. Returns the seconds that its process ran.

    A seed adds a thousandth of mIoU; on the clock of steps `feature` beats `logit`; the repetition is 10 % slower.
    """
    name, budget_s = start.contender.name, start.rung.budget_s
    assert budget_s is not None
    step_s = STEP_S.get(name, 0.75) * (1.1 if start.again else 1.0)
    steps = int(budget_s / (step_s if start.rung.clock == "time" else STEP_S["none"]))
    shift = 0.1 if name == "feature" and start.rung.clock == "steps" else 0.0
    miou = MIOU.get(name, 0.52) + shift + start.seed / 1000
    config = contest.config(start, str(folder), steps if start.rung.clock == "steps" else None)
    place = {"device": "cpu", "processors": 2, "processes": 1, "packages": {"torch": "2.15.0"}, "cuda": None}
    weights = {} if start.contender.method == "none" else {start.contender.method: 1.0}
    dataset = {"name": "streets:64x64:6", "split": "train"}
    _write(folder / "config.json", config.to_dict())
    _write(folder / "environment.json", {**place, "term_weights": weights})
    _write(folder / "inputs.json", {"dataset": dataset, "teacher": {"name": "pspnet_resnet101"}})
    iou = {"road": miou + 0.1, "car": miou - 0.1, "sky": None}
    scores = {"miou": miou, "pixel_accuracy": 0.9, "mean_accuracy": 0.8, "iou": iou, "images": 12}
    scores["confusion"] = [[6, 0, 0], [1, 1, 0], [0, 0, 0]]
    training_s = steps * step_s
    result = {"steps": steps, "planned_steps": steps, "training_s": training_s, "scores": scores}
    _write(folder / "scores.json", result)
    lines: list[dict[str, Any]] = []
    for tenth in range(1, 11):
        step = max(1, steps * tenth // 10)
        timing = {"step_s": step_s, "wait_s": WAIT_SHARE * step_s, "training_s": step * step_s}
        lines.append(
            {"kind": "train", "step": step, "loss": 2 / tenth, "ce": 2 / tenth, "lr": 0.01, **timing}
        )
        parts = {"wait_s": 0.1, "copy_s": 0.0, "forward_s": 0.4, "backward_s": 0.4, "optimiser_s": 0.05}
        parts = {part: share * step_s for part, share in parts.items()}
        lines.append({"kind": "profile", "step": step, "steps": 1, **parts, "other_s": 0.05 * step_s})
        if tenth in (5, 10):
            half = {"miou": miou * tenth / 10, "pixel_accuracy": 0.9, "training_s": step * step_s}
            lines.append({"kind": "eval", "step": step, **half, "seconds": EVALUATION_S / 2})
    lines.append({"kind": "save", "step": steps, "seconds": SAVING_S})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return training_s + STARTUP_S + EVALUATION_S + SAVING_S


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
