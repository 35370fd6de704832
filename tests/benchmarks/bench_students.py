"""The cost of stored targets: a student's mIoU with each codec minus that with the exact targets of an online teacher.

All sides see the same views in the same order for the same number of steps, from the same initialisation; a seed is one
such group, and differences are taken within it. Without options it first trains a teacher on drawn streets; --dataset,
--data-root, --teacher and --weights use a real one; --crop, --steps, --seeds and --views set the size.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from harness import Row, finish

from kdcache.cache.build.build import build_store, plan_store
from kdcache.cache.build.builder import BuildOptions
from kdcache.cache.images.datasets import open_dataset
from kdcache.cache.store.opening import create_store
from kdcache.cache.teachers.teacher import load_teacher
from kdcache.cache.views.policy import view_policy
from kdcache.distill.compare.intervals import paired_difference
from kdcache.distill.config import TrainConfig
from kdcache.distill.training.loop import train

CODECS = {  # by side; the stores' views are the same
    "fp16": "fp16",
    "default": "auto:0.001",
    "smallest": "auto:0.01",  # ten times the default's loss
}
EXACT = "exact"


def run(
    *,
    quick: bool,
    as_json: bool,
    dataset: str | None = None,
    data_root: str | None = None,
    teacher: str = "pspnet_resnet18",
    weights: str | None = None,
    crop: str = "64x128",
    steps: str | None = None,
    seeds: str | None = None,
    views: str = "4",
    method: str = "logit+feature",
) -> int:
    name = dataset or ("streets:64x128:40" if quick else "streets:128x256:300")
    n_steps, n_seeds = int(steps or (10 if quick else 300)), int(seeds or (2 if quick else 8))
    height, width = (int(side) for side in crop.split("x"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        common = TrainConfig(
            out=str(folder / "teacher"),
            method="none",
            source="none",
            dataset=name,
            data_root=data_root or "",
            student=teacher,
            fresh_views=True,
            crop_height_px=height,
            crop_width_px=width,
            backbone_weights="none",
            batch_size=8,
            lr=0.05,
            steps=20 if quick else 600,
            gradnorm_every_steps=0,
            save_every_s=1e9,
        )
        if weights is None:
            weights = f"{train(common).out}/student.safetensors"
        stores = build_stores(folder, common, weights, passes=int(views))
        online = replace(
            common,
            method=method,
            source="online",
            store=stores["fp16"],  # for its views alone
            dataset="",
            student="pspnet_resnet18",
            teacher=teacher,
            teacher_weights=weights,
            fresh_views=False,
            crop_height_px=None,  # the store's
            crop_width_px=None,
            steps=n_steps,
        )
        cached = {
            side: replace(online, source="cache", teacher="", teacher_weights="", store=url)
            for side, url in stores.items()
        }
        miou, seconds = train_students({EXACT: online, **cached}, n_seeds, folder)
    rows = [Row(f"mIoU, {side}", statistics.mean(scores), "%") for side, scores in miou.items()]
    for side in CODECS:
        rows += difference_rows(side, miou, bounded=side == "default" and not quick)
    setting = f"{name}, {teacher} -> pspnet_resnet18, {method}, {n_steps} steps of 8 crops of {crop}, {views} views, {n_seeds} seeds"
    return finish("students", rows, seconds, setting, as_json=as_json)


def build_stores(folder: Path, common: TrainConfig, weights: str, *, passes: int) -> dict[str, str]:
    """URLs of stores of the same views, by codec."""
    images = open_dataset(common.dataset, common.data_root or None, "train")
    classes = len(images.classes.names)
    teacher = load_teacher(common.student, weights=weights, dataset_name=common.dataset, classes=classes)
    policy = replace(
        view_policy(images.name), crop_height_px=common.crop_height_px, crop_width_px=common.crop_width_px
    )
    stores = {}
    for side, codec in CODECS.items():
        spec = plan_store(
            images, teacher, policy, seed=0, targets=dict.fromkeys(("logits", "features"), codec)
        )
        store = create_store(str(folder / side), spec, images.image_ids)
        build_store(store, images, teacher, passes=passes, options=BuildOptions(force=True))
        stores[side] = store.url
    return stores


def train_students(
    sides: Mapping[str, TrainConfig], seeds: int, folder: Path
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """mIoU in percent and seconds, by side, one value for each seed."""
    miou: dict[str, list[float]] = {side: [] for side in sides}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for seed in range(seeds):
        for side, config in sides.items():
            began = time.perf_counter()
            result = train(replace(config, out=str(folder / f"{side}-{seed}"), seed=seed))
            assert result.scores is not None
            miou[side].append(100 * float(result.scores["miou"]))
            seconds[side].append(time.perf_counter() - began)
            print(f"seed {seed}, {side}: {miou[side][-1]:.2f} %", flush=True)
    return miou, seconds


def difference_rows(side: str, miou: Mapping[str, list[float]], *, bounded: bool) -> list[Row]:
    """The mean paired difference to the exact targets, and half the width of its interval of 95 %."""
    found = paired_difference(miou[side], miou[EXACT])
    held = ("|d| <= .5", abs(found.mean) <= 0.5) if bounded else ()
    rows = [Row(f"mIoU, {side} less exact", found.mean, "points", *held)]
    if found.high is not None:  # not defined for a single seed
        half = found.high - found.mean
        rows.append(Row(f"mIoU, {side} less exact, half the interval", half, "points"))
    return rows
