"""RECIPES: whole training recipes by name, every figure with where it is from.

    kdcache build --dataset cityscapes --recipe paper-cityscapes            # its views, see policy.POLICIES
    kdcache distill --method feature --dataset cityscapes --recipe paper-cityscapes
    kdcache distill --method none --dataset cityscapes --fresh-views --recipe teacher-cityscapes

A recipe sets what is not given on the command line. A batch is that of all processes together: 8 crops are 8 on one
GPU, or one on each of eight, whose BatchNorms then work as one.

Of arXiv 2604.25530 only the abstract and a digest were at hand. The abstract names student, teacher and data sets and
says that training longer pays; the digest adds colours and cosine annealing. What both leave open is taken from mmsegmentation, whose published teacher has the mIoU that the abstract reports, and marked OURS. Weights of methods are
in methods.py, with their sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ABSTRACT = "abstract of arXiv 2604.25530"
DIGEST = "a digest of arXiv 2604.25530"
OURS = "ours"
MMSEG_CITYSCAPES = "mmsegmentation, pspnet_r101-d8_512x1024_80k_cityscapes"
MMSEG_ADE20K = "mmsegmentation, pspnet_r101-d8_512x512_160k_ade20k"
OURS_CITYSCAPES = f"{OURS}, after {MMSEG_CITYSCAPES}"
OURS_ADE20K = f"{OURS}, after {MMSEG_ADE20K}"


@dataclass(frozen=True, slots=True)
class Figure:
    """The value of a field of TrainConfig, and who says so."""

    value: Any
    source: str


def _sgd(lr: float, batch_size: int, steps: int, source: str) -> dict[str, Figure]:
    return {
        "batch_size": Figure(batch_size, source),
        "steps": Figure(steps, source),
        "lr": Figure(lr, source),
        "momentum": Figure(0.9, source),
        "weight_decay": Figure(5e-4, source),
    }


def _poly(source: str) -> dict[str, Figure]:
    return {
        "schedule": Figure("poly", source),
        "power": Figure(0.9, source),
        "min_lr": Figure(1e-4, source),
    }


_PAPER = {
    "student": Figure("pspnet_resnet18", ABSTRACT),
    "backbone_weights": Figure("imagenet", OURS),
    "schedule": Figure("cosine", DIGEST),
    "min_lr": Figure(0.0, OURS),
    "aux_weight": Figure(0.4, "every code base that was read"),
    "eval_mode": Figure("whole", OURS_CITYSCAPES),
}

RECIPES: dict[str, dict[str, Figure]] = {
    "paper-cityscapes": {**_PAPER, **_sgd(0.01, 8, 80_000, OURS_CITYSCAPES)},
    "paper-ade20k": {
        **_PAPER,
        **_sgd(0.01, 16, 160_000, OURS_ADE20K),
        "eval_mode": Figure("whole", OURS_ADE20K),
    },
    "camvid": {**_sgd(0.01, 8, 20_000, OURS), **_poly(OURS_CITYSCAPES)},
    # scripts/quickstart: no weights to download, and small crops bear a large rate.
    "streets": {
        "backbone_weights": Figure("none", OURS),
        **_sgd(0.05, 4, 2_000, OURS),
        **_poly(OURS_CITYSCAPES),
    },
    "teacher-cityscapes": {
        "student": Figure("pspnet_resnet101", ABSTRACT),
        **_sgd(0.01, 8, 80_000, MMSEG_CITYSCAPES),
        **_poly(MMSEG_CITYSCAPES),
    },
    "teacher-ade20k": {
        "student": Figure("pspnet_resnet101", ABSTRACT),
        **_sgd(0.01, 16, 160_000, MMSEG_ADE20K),
        **_poly(MMSEG_ADE20K),
    },
    "teacher-streets": {
        "student": Figure("pspnet_resnet50", OURS),
        "backbone_weights": Figure("none", OURS),
        **_sgd(0.05, 4, 4_000, OURS),
        **_poly(OURS_CITYSCAPES),
    },
}


def recipe_fields(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of TrainConfig that a recipe sets where `given` does not; nothing for a name of views alone."""
    fields = {field: figure.value for field, figure in RECIPES.get(name, {}).items()}
    if not given.keys().isdisjoint({"steps", "epochs", "budget_seconds"}):
        fields.pop("steps", None)
    return {field: value for field, value in fields.items() if field not in given}
