"""RECIPES: whole training recipes by name, each value with its source.

    kdcache build --dataset cityscapes --recipe paper-cityscapes            # its views, see policy.POLICIES
    kdcache distill --method feature --dataset cityscapes --recipe paper-cityscapes
    kdcache distill --method none --dataset cityscapes --fresh-views --recipe teacher-cityscapes

A recipe sets the options that you do not give on the command line. `batch_size` counts the crops of all processes: 8 is
8 on one GPU, or 1 on each of eight GPUs with synchronised BatchNorms.

The `paper-` recipes follow arXiv 2604.25530 as far as its abstract and a digest go. The abstract names student, teacher
and data sets; the digest adds colour augmentation and cosine annealing. The rest comes from mmsegmentation, whose
published teacher has the mIoU that the abstract reports, and is marked OURS. The weights of the methods' losses are in
losses/methods.py, with their sources.
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
class Setting:
    """The value of a field of TrainConfig, and its source."""

    value: Any
    source: str


def _sgd(lr: float, batch_size: int, steps: int, source: str) -> dict[str, Setting]:
    return {
        "batch_size": Setting(batch_size, source),
        "steps": Setting(steps, source),
        "lr": Setting(lr, source),
        "momentum": Setting(0.9, source),
        "weight_decay": Setting(5e-4, source),
    }


def _poly(source: str) -> dict[str, Setting]:
    return {
        "schedule": Setting("poly", source),
        "power": Setting(0.9, source),
        "min_lr": Setting(1e-4, source),
    }


_PAPER = {
    "student": Setting("pspnet_resnet18", ABSTRACT),
    "backbone_weights": Setting("imagenet", OURS),
    "schedule": Setting("cosine", DIGEST),
    "min_lr": Setting(0.0, OURS),
    "aux_weight": Setting(0.4, "every code base that was read"),
    "eval_mode": Setting("whole", OURS_CITYSCAPES),
}

RECIPES: dict[str, dict[str, Setting]] = {
    "paper-cityscapes": {**_PAPER, **_sgd(0.01, 8, 80_000, OURS_CITYSCAPES)},
    "paper-ade20k": {
        **_PAPER,
        **_sgd(0.01, 16, 160_000, OURS_ADE20K),
        "eval_mode": Setting("whole", OURS_ADE20K),
    },
    "camvid": {**_sgd(0.01, 8, 20_000, OURS), **_poly(OURS_CITYSCAPES)},
    # For scripts/quickstart: trains from scratch, so that nothing is downloaded. The large rate is stable because the
    # crops are small and the classes easy.
    "streets": {
        "backbone_weights": Setting("none", OURS),
        **_sgd(0.05, 4, 2_000, OURS),
        **_poly(OURS_CITYSCAPES),
    },
    "teacher-cityscapes": {
        "student": Setting("pspnet_resnet101", ABSTRACT),
        **_sgd(0.01, 8, 80_000, MMSEG_CITYSCAPES),
        **_poly(MMSEG_CITYSCAPES),
    },
    "teacher-ade20k": {
        "student": Setting("pspnet_resnet101", ABSTRACT),
        **_sgd(0.01, 16, 160_000, MMSEG_ADE20K),
        **_poly(MMSEG_ADE20K),
    },
    "teacher-streets": {
        "student": Setting("pspnet_resnet50", OURS),
        "backbone_weights": Setting("none", OURS),
        **_sgd(0.05, 4, 4_000, OURS),
        **_poly(OURS_CITYSCAPES),
    },
}


def recipe_fields(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of TrainConfig that the recipe sets and `given` does not.

    Empty for names that only cache/views knows, which set no training options.
    """
    fields = {field: setting.value for field, setting in RECIPES.get(name, {}).items()}
    if not given.keys().isdisjoint({"steps", "epochs", "budget_seconds"}):
        fields.pop("steps", None)  # a run has one length, and the user gave it
    return {field: value for field, value in fields.items() if field not in given}
