"""METHODS: the terms of every method. To add a method, write a term class and add an entry here.

An entry names the method's losses, each with its term class and its weight. The classes document formulas, papers and
temperatures. The comment at an entry names the source of the weights: the authors' settings for segmentation where they
exist. All losses here are means over pixels or images. Where the published code sums, the weight makes up for it, for the
authors' batch size and number of classes.

BPKD (arXiv 2306.08075) is missing: its training code was never published, and the paper leaves its formula open.
"""

from collections.abc import Mapping
from typing import Any

from kdcache.cache.errors import unknown_name
from kdcache.distill.config import parse_weights
from kdcache.distill.losses.adversarial import Holistic, HolisticBySGD
from kdcache.distill.losses.attention import AttentionTransfer, CategorySimilarity, PixelSimilarity
from kdcache.distill.losses.generative import MaskedGeneration, OmniContrast
from kdcache.distill.losses.logits import (
    AuxiliaryCorrelation,
    ChannelKL,
    Correlation,
    DecoupledKL,
    FeatureChannelKL,
)
from kdcache.distill.losses.memory import CrossImageMemory, PublishedCrossImageMemory
from kdcache.distill.losses.relations import CrossImage, IntraClassVariation, PairSimilarity
from kdcache.distill.losses.terms import (
    FeatureMSE,
    LossConfig,
    Method,
    PixelKL,
    StudentMaps,
    Terms,
    term_needs,
)

METHODS: dict[str, Terms] = {
    "none": {},
    # CIRKD, train_kd.py: --lambda-kd 1 --kd-temperature 1.
    "logit": {"logit": (PixelKL, 1.0)},
    # The "robust starting point" beta = 6 that a digest of arXiv 2604.25530 reports; CIRKD's FitNet has 10.
    "feature": {"feature": (FeatureMSE, 6.0)},
    # L_CE + alpha L_KD + beta L_feat of arXiv 2604.25530, as the digest has it.
    "logit+feature": {"logit": (PixelKL, 1.0), "feature": (FeatureMSE, 6.0)},
    # CIRKD, train_kd/train_at.sh. AT's authors published weights for classification only.
    "at": {"attention": (AttentionTransfer, 1e4), "logit": (PixelKL, 1.0)},
    # SKD, run_train_val.sh: lambda_pi 10, summed over a batch of 8; lambda_pa 0.5; lambda_d 0.1.
    "skd": {"logit": (PixelKL, 80.0), "pair": (PairSimilarity, 0.5), "holistic": (HolisticBySGD, 0.1)},
    # IFVD, options.py: lambda_kd 10, a mean over 19 classes too; lambda_ifv 200; lambda_adv 0.001.
    "ifvd": {
        "logit": (PixelKL, 10 / 19),
        "variation": (IntraClassVariation, 200.0),
        "holistic": (Holistic, 1e-3),
    },
    # CWD, README of TorchDistiller's SemSeg-distill: weight 3, T 4.
    "cwd": {"cwd": (ChannelKL, 3.0)},
    # CIRKD, train_kd/train_cwd.sh: --lambda-cwd-fea 50, T 4.
    "cwd-feature": {"cwd_feature": (FeatureChannelKL, 50.0)},
    # CIRKD, train_cirkd.py. On VOC its authors use 0.01 for both memories.
    "cirkd": {
        "logit": (PixelKL, 1.0),
        "minibatch": (CrossImage, 1.0),
        "memory_pixel": (CrossImageMemory, 0.1),
        "memory_region": (CrossImageMemory, 0.1),
    },
    # The same with the bug of the published code, see PublishedCrossImageMemory.
    "cirkd-published": {
        "logit": (PixelKL, 1.0),
        "minibatch": (CrossImage, 1.0),
        "memory_pixel": (PublishedCrossImageMemory, 0.1),
        "memory_region": (PublishedCrossImageMemory, 0.1),
    },
    # DIST, segmentation/train_kd.py: lambda_kd 1, and 0.4 of it on the auxiliary heads.
    "dist": {"dist": (Correlation, 1.0), "dist_aux": (AuxiliaryCorrelation, 0.4)},
    # MGD, psp_r101_distill_psp_r18_40k_512x512_city.py: alpha 2e-5, and CWD on logits with weight 3, T 4.
    "mgd": {"generated": (MaskedGeneration, 2e-5), "cwd": (ChannelKL, 3.0)},
    # Af-DCD, the scripts for Cityscapes. For ADE20K: logit 0.5, generated 1e-6, contrast 0.04.
    "af-dcd": {
        "logit": (PixelKL, 1.0),
        "generated": (OmniContrast, 2e-6),
        "contrast": (OmniContrast, 5e-3),
    },
    # DKD, mdistiller/engine/cfg.py: alpha 1, beta 8, T 4, for CIFAR-100. Its authors published none for segmentation.
    "dkd": {"dkd_target": (DecoupledKL, 1.0), "dkd_nontarget": (DecoupledKL, 8.0)},
    # CIRKD, train_kd/train_dsd.sh.
    "dsd": {"psd": (PixelSimilarity, 1000.0), "csd": (CategorySimilarity, 10.0)},
}


def find_method(name: str) -> Terms:
    """The terms of a method.

    Raises:
        UsageError: the name is unknown; the message lists the known ones.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


def method_needs(name: str, config: LossConfig) -> tuple[str, ...]:
    """The teacher's targets, and possibly terms.LABELS, that a run of the method needs.

    Raises:
        UsageError: the name is unknown, or `config` changes a term that the method does not have.
    """
    return term_needs(find_method(name), config)


def applicable_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for several methods, reduced to those that apply to one: weights of its terms, temperature if it has one.

    Args:
        name: the method.
        options: values of TrainConfig by field.
    """
    terms, applicable = find_method(name), dict(options)
    if "kd_terms" in applicable:
        weights = parse_weights(applicable["kd_terms"]).items()
        applicable["kd_terms"] = ",".join(f"{term}={weight!r}" for term, weight in weights if term in terms)
    if all(loss.temperature is None for loss, _ in terms.values()):
        applicable.pop("temperature", None)
    return applicable


def build_method(
    name: str, config: LossConfig, student: StudentMaps, teacher_channels: Mapping[str, int]
) -> Method:
    """The loss of a run. Raises UsageError, see find_method and terms.Method."""
    return Method(find_method(name), config, student, teacher_channels)
