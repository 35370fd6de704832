"""A cached training step of every method over one without a teacher: what its loss and its targets cost.

All methods take turns a step at a time in one process, each a run of its own, on the same stored views; a round's ratios
are to the step without a teacher of the same round. Data is read in the training process, so that decoding targets counts
too. The teacher's weights are random, which costs the same; methods that need a discriminator, a memory or projections
of the teacher's backbone pay for them here. --methods, --teacher, --crop and --rounds set the size.

Without a GPU the same ratio stands beside it in seconds of the processor, which other processes disturb less.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from bench_build import random_teacher
from harness import Row, alternate, finish, median_ratio, synchronise

from kdcache.cache.build import BuildOptions, build_store, plan_store
from kdcache.cache.datasets import open_dataset
from kdcache.cache.progress import silent
from kdcache.cache.store import create_store
from kdcache.cache.views import view_policy
from kdcache.distill.clock import BACKWARD, COPY, FORWARD, OPTIMISER, WAIT, Clock
from kdcache.distill.config import TrainConfig
from kdcache.distill.loader import DeviceCopier
from kdcache.distill.methods import METHODS
from kdcache.distill.run import Run, make_accelerator, open_run
from kdcache.distill.train import open_batches, take_step

IMAGES = 8
BATCH_SIZE = 2
ALONE = "none"
CODECS = {"logits": "dct:0.5", "features": "dct:0.5:128", "aux": "dct:0.5", "backbone": "dct:0.5:128"}


def run(
    *,
    quick: bool,
    as_json: bool,
    methods: str | None = None,
    teacher: str | None = None,
    crop: str | None = None,
    rounds: str | None = None,
) -> int:
    names = list(dict.fromkeys([ALONE, *(methods.split(",") if methods else METHODS)]))
    teacher = teacher or ("pspnet_resnet18" if quick else "pspnet_resnet101")
    crop, n_rounds = crop or ("64x128" if quick else "256x512"), int(rounds or (2 if quick else 9))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        store = build_bank(folder, f"streets:{crop}:{IMAGES}", teacher)
        parts: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        cpu_s: dict[str, list[float]] = {name: [] for name in names}
        steps: dict[str, Callable[[], object]] = {
            name: opened.enter_context(
                closing(stepper(open_side(folder, store, name), parts[name], cpu_s[name]))
            ).__next__
            for name in names
        }
        seconds = alternate(steps, n_rounds)
    measured = {name: laps[1:] for name, laps in parts.items()}  # without the warm-up
    rows = [row for name in names if name != ALONE for row in price(name, seconds, measured)]
    if not torch.cuda.is_available():
        rows += [
            Row(f"{name}: processor seconds over none", median_ratio(cpu_s[name][1:], cpu_s[ALONE][1:]), "")
            for name in names[1:]
        ]
    setting = f"{teacher} -> pspnet_resnet18, batch {BATCH_SIZE} of {crop}, {n_rounds} rounds"
    return finish("methods", rows, seconds, setting, as_json=as_json)


def price(name: str, seconds: dict[str, list[float]], parts: dict[str, list[dict[str, float]]]) -> list[Row]:
    """The step over the one without a teacher, and the seconds that loss and data add to it."""
    loss_s, data_s = (
        statistics.median(
            sum(one[part] - other[part] for part in of)
            for one, other in zip(parts[name], parts[ALONE], strict=True)
        )
        for of in ((FORWARD, BACKWARD, OPTIMISER), (WAIT, COPY))
    )
    return [
        Row(f"{name}: step over none", median_ratio(seconds[name], seconds[ALONE]), ""),
        Row(f"{name}: loss", loss_s, "s"),
        Row(f"{name}: data", data_s, "s"),
    ]


def build_bank(folder: str, dataset_name: str, teacher_name: str) -> str:
    """A store of one pass with all targets."""
    dataset = open_dataset(dataset_name, None, "train")
    teacher = random_teacher(teacher_name, len(dataset.classes.names), Path(folder))
    spec = plan_store(dataset, teacher, view_policy(dataset_name), seed=0, targets=CODECS)
    store = create_store(f"{folder}/store", spec, dataset.image_ids)
    build_store(store, dataset, teacher, passes=1, options=BuildOptions(batch_size=2, force=True))
    return f"{folder}/store"


def open_side(folder: str, store: str, method: str) -> Run:
    config = TrainConfig(
        out=f"{folder}/{method}",
        method=method,
        source="none" if method == ALONE else "cache",
        store=store,
        backbone_weights="none",
        batch_size=BATCH_SIZE,
        steps=1000,
        workers=0,
        eval_split="",
        gradnorm_every_steps=0,
    )
    return open_run(config, make_accelerator(config), silent)


def stepper(training: Run, laps: list[dict[str, float]], cpu_s: list[float]) -> Iterator[None]:
    """One training step a `next`, as the loop does it; seconds of its parts go to `laps`, the processor's to `cpu_s`."""
    device = training.accelerator.device
    clock, copy = Clock(device), DeviceCopier(device)
    with closing(open_batches(training)) as batches:
        while True:
            began = time.process_time()  # of all threads: backward has one of its own
            take_step(training, batches, copy, clock)
            cpu_s.append(time.process_time() - began)
            training.state.step += 1
            synchronise()  # the clock's marks are events in a GPU's work
            laps.append(clock.lap()[1])  # what passed at the others' steps is in the part `other`
            yield
