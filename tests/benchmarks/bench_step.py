"""A training step with its data: without a teacher, with cached logits and features, and with an online teacher.

The sides take turns, a step at a time, each as a separate run with its own loader. The teacher is a PSPNet-ResNet-101,
the student a PSPNet-ResNet-18; weights are random, which costs the same. Targets are stored by `dct`, in as many
components as `auto` keeps for a trained teacher. --crop 256x512 measures one size only.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from bench_build import random_teacher
from harness import Row, alternate, finish, median_ratio, ratio, synchronise

from kdcache.cache.build.build import build_store, plan_store
from kdcache.cache.build.builder import BuildOptions
from kdcache.cache.images.datasets import open_dataset
from kdcache.cache.progress import silent
from kdcache.cache.store.opening import create_store
from kdcache.cache.teachers.teacher import Teacher
from kdcache.cache.views.policy import view_policy
from kdcache.distill.clock import WAIT, Clock
from kdcache.distill.config import TrainConfig
from kdcache.distill.data.loader import DeviceCopier
from kdcache.distill.training.loop import open_batches, take_step
from kdcache.distill.training.run import Run, make_accelerator, open_run

IMAGES = 8
BATCH_SIZE = 2
CODECS = {"logits": "dct:0.5", "features": "dct:0.5:128"}
SIDES = {  # name -> method, source
    "no teacher": ("none", "none"),
    "cached logit": ("logit", "cache"),
    "cached feature": ("feature", "cache"),
    "online logit": ("logit", "online"),
    "online feature": ("feature", "online"),
}


def run(*, quick: bool, as_json: bool, crop: str | None = None) -> int:
    crops, rounds = (((96, 192),), 5) if quick else (((256, 512), (512, 1024)), 7)
    if crop is not None:
        height, width = (int(side) for side in crop.split("x"))
        crops = ((height, width),)
    rows: list[Row] = []
    seconds: dict[str, list[float]] = {}
    for height, width in crops:
        size = f"{height}x{width}"
        timed, waited = measure((height, width), rounds)
        rows += compare(size, timed, waited)
        seconds |= {f"{size}, {name}": values for name, values in timed.items()}
    setting = f"PSPNet-R101 -> R18, batch {BATCH_SIZE}, {rounds} rounds"
    return finish("step", rows, seconds, setting, as_json=as_json)


def measure(crop: tuple[int, int], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of a step by side, and the part of them spent waiting for data."""
    laps: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        teacher = random_teacher("pspnet_resnet101", 19, Path(folder))
        store = build_bank(folder, f"streets:{crop[0]}x{crop[1]}:{IMAGES}", teacher, CODECS)
        steps: dict[str, Callable[[], object]] = {}
        for name, (method, source) in SIDES.items():
            training = open_side(folder, store, method, source)
            steps[name] = opened.enter_context(closing(stepper(training, laps[name]))).__next__
        pixels = torch.zeros((BATCH_SIZE, *crop, 3), dtype=torch.uint8, device=teacher.device)
        valid_size = torch.tensor([crop] * BATCH_SIZE, device=teacher.device)
        steps["teacher alone"] = lambda: teacher(pixels, valid_size, ("logits", "features"))
        seconds = alternate(steps, rounds)
    return seconds, {name: [lap[WAIT] for lap in of_side] for name, of_side in laps.items()}


def compare(size: str, seconds: dict[str, list[float]], waited: dict[str, list[float]]) -> list[Row]:
    """The ratios with bounds, and further ones."""
    alone = seconds["no teacher"]
    expected = median_ratio([t + s for t, s in zip(seconds["teacher alone"], alone, strict=True)], alone)
    rows = [
        Row(f"{size}: share of waiting, {name}", sum(waited[name][1:]) / sum(seconds[name]), "")
        for name in SIDES
    ]
    rows.append(Row(f"{size}: (T + S) / S", expected, ""))
    for method in ("logit", "feature"):
        cached, online = seconds[f"cached {method}"], seconds[f"online {method}"]
        gained = median_ratio(online, cached)
        rows += [
            ratio(f"{size}: step, cached {method} over no teacher", median_ratio(cached, alone), "<= 1.03"),
            Row(f"{size}: step, online {method} over cached {method}", gained, ""),
            ratio(f"{size}: the same over (T + S) / S, {method}", gained / expected, ">= 0.95"),
        ]
    return rows


def build_bank(folder: str, dataset_name: str, teacher: Teacher, codecs: Mapping[str, str]) -> str:
    """A store of one pass, with the targets that have a codec."""
    dataset = open_dataset(dataset_name, None, "train")
    spec = plan_store(dataset, teacher, view_policy(dataset_name), seed=0, targets=codecs)
    store = create_store(f"{folder}/store", spec, dataset.image_ids)
    build_store(store, dataset, teacher, passes=1, options=BuildOptions(batch_size=2, force=True))
    return f"{folder}/store"


def open_side(folder: str, store: str, method: str, source: str, workers: int | None = None) -> Run:
    config = TrainConfig(
        out=f"{folder}/{source}-{method}",
        method=method,
        source=source,
        store=store,
        backbone_weights="none",
        batch_size=BATCH_SIZE,
        steps=1000,
        workers=workers,
        eval_split="",
        teacher="pspnet_resnet101" if source == "online" else "",
        teacher_weights=f"{folder}/teacher.safetensors" if source == "online" else "",
        gradnorm_every_steps=0,
    )
    return open_run(config, make_accelerator(config), silent)


def stepper(training: Run, laps: list[dict[str, float]]) -> Iterator[None]:
    """One training step of the loop for each `next`. Seconds of its parts go to `laps`."""
    device = training.accelerator.device
    clock, copy = Clock(device), DeviceCopier(device, training.inputs.policy)
    with closing(open_batches(training)) as batches:
        while True:
            take_step(training, batches, copy, clock)
            training.state.step += 1
            synchronise()  # the clock's marks are events in a GPU's work
            laps.append(clock.lap()[1])  # the time of the other sides' steps is in the part `other`
            yield
