"""A training step, data and all: no teacher, cached logits and features, and the same with the teacher running along.

The sides take turns a step at a time, each a run of its own with its own loader. The teacher is a PSPNet-ResNet-101,
the student a PSPNet-ResNet-18; weights are random, which costs the same.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter

import torch
from bench_build import random_teacher
from harness import Row, alternate, finish, median_ratio, ratio

from kdcache.cache.build import BuildOptions, build_store, plan_store
from kdcache.cache.datasets import open_dataset
from kdcache.cache.progress import silent
from kdcache.cache.store import create_store
from kdcache.cache.teacher import Teacher
from kdcache.cache.views import view_policy
from kdcache.distill.config import TrainConfig
from kdcache.distill.run import Run, make_accelerator, open_run
from kdcache.distill.train import compute_terms, open_batches, update

IMAGES = 8


def run(*, quick: bool, as_json: bool) -> int:
    crop, batch_size, rounds = ((128, 256), 2, 5) if quick else ((512, 1024), 2, 7)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        teacher = random_teacher("pspnet_resnet101", 19, Path(folder))
        dataset = f"streets:{crop[0]}x{crop[1]}:{IMAGES}"
        store = build_bank(folder, dataset, teacher)
        waits: dict[str, list[float]] = {}
        sides: dict[str, Callable[[], object]] = {}
        for name, method, source in (
            ("no teacher", "none", "none"),
            ("cached logit", "logit", "cache"),
            ("cached feature", "feature", "cache"),
            ("online logit", "logit", "online"),
            ("online feature", "feature", "online"),
        ):
            config = TrainConfig(
                out=f"{folder}/{method}-{source}",
                method=method,
                source=source,
                store=store,
                backbone_weights="none",
                batch_size=batch_size,
                steps=1000,
                eval_split="",
                teacher="pspnet_resnet101" if source == "online" else "",
                teacher_weights=f"{folder}/teacher.safetensors" if source == "online" else "",
                gradnorm_every_steps=0,
            )
            training = open_run(config, make_accelerator(config), silent)
            sides[name] = opened.enter_context(
                closing(stepper(training, waits.setdefault(name, [])))
            ).__next__
        crops = torch.zeros((batch_size, *crop, 3), dtype=torch.uint8, device=teacher.device)
        valid = torch.tensor([crop] * batch_size, device=teacher.device)
        sides["teacher alone"] = lambda: teacher(crops, valid, ("logits", "features"))
        seconds = alternate(sides, rounds)

    rows = [
        Row(f"share of waiting, {name}", sum(w[1:]) / sum(seconds[name]), "") for name, w in waits.items()
    ]
    both = [t + s for t, s in zip(seconds["teacher alone"], seconds["no teacher"], strict=True)]
    expected = median_ratio(both, seconds["no teacher"])
    rows.append(Row("(T + S) / S", expected, ""))
    for method in ("logit", "feature"):
        cached, online = seconds[f"cached {method}"], seconds[f"online {method}"]
        rows.append(
            ratio(
                f"step, cached {method} over no teacher",
                median_ratio(cached, seconds["no teacher"]),
                "<= 1.05",
            )
        )
        gained = median_ratio(online, cached)
        rows.append(Row(f"step, online {method} over cached {method}", gained, ""))
        rows.append(ratio(f"the same over (T + S) / S, {method}", gained / expected, ">= 0.95"))
    setting = f"PSPNet-R101 -> R18, crops of {crop[0]}x{crop[1]}, batch {batch_size}, {rounds} rounds"
    return finish("step", rows, seconds, setting, as_json=as_json)


def build_bank(folder: str, dataset_name: str, teacher: Teacher) -> str:
    """A store of one pass, logits and features in the default codec."""
    dataset = open_dataset(dataset_name, None, "train")
    targets = {"logits": "uniform", "features": "uniform"}
    spec = plan_store(dataset, teacher, view_policy(dataset_name), seed=0, targets=targets)
    store = create_store(f"{folder}/store", spec, dataset.image_ids)
    build_store(store, dataset, teacher, passes=1, options=BuildOptions(batch_size=2, force=True))
    return f"{folder}/store"


def stepper(training: Run, waits: list[float]):  # type: ignore[no-untyped-def]
    """One training step a `next`, as the loop does it; seconds of waiting for the batch go to `waits`."""
    with closing(open_batches(training)) as batches:
        while True:
            began = perf_counter()
            batch = next(batches).to(training.accelerator.device)
            waits.append(perf_counter() - began)
            update(training, compute_terms(training, batch))
            training.state.step += 1
            yield
