"""A cached training step of every method over a step without a teacher: the cost of its loss and its targets.

All methods take turns, a step at a time, in one process. Each is a separate run on the same stored views. A round's ratios
are to the step without a teacher of the same round. Data is loaded in the training process, so that decoding targets
counts too. The teacher's weights are random, which costs the same. Discriminators, memories and projections count.
--methods, --teacher, --crop and --rounds set the size.

Without a GPU, the same ratio is also given in processor seconds, which other processes disturb less.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from bench_build import random_teacher
from bench_step import BATCH_SIZE, build_bank, open_side, stepper
from harness import Row, alternate, finish, median_ratio

from kdcache.distill.clock import BACKWARD, COPY, FORWARD, OPTIMISER, WAIT
from kdcache.distill.losses.methods import METHODS

IMAGES = 8
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
        store = build_bank(
            folder, f"streets:{crop}:{IMAGES}", random_teacher(teacher, 19, Path(folder)), CODECS
        )
        parts: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        cpu_s: dict[str, list[float]] = {name: [] for name in names}
        steps: dict[str, Callable[[], object]] = {}
        for name in names:
            source = "none" if name == ALONE else "cache"
            training = open_side(folder, store, name, source, workers=0)
            step = opened.enter_context(closing(stepper(training, parts[name]))).__next__
            steps[name] = on_processor(step, cpu_s[name])
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
    """The step over the step without a teacher, and the seconds that loss and data add to it."""
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


def on_processor(step: Callable[[], object], cpu_s: list[float]) -> Callable[[], None]:
    """The step, with its processor seconds in `cpu_s`: of all threads, because backward runs in another one."""

    def run_step() -> None:
        began = time.process_time()
        step()
        cpu_s.append(time.process_time() - began)

    return run_step
