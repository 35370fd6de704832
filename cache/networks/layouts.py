"""How the public code bases name the parameters of a network, and the traits that no parameter shows.

The keys were taken from open-mmlab/mmsegmentation 1.2.2, winycg/CIRKD 91735ef and dab64db, hszhao/semseg 4f274c3,
irfanICMLL/structure_knowledge_distillation ce208e1 (SKD; IFVD and CWD use its networks) and torchvision 0.29.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcache.cache.networks.network import PRESETS
from kdcache.cache.networks.normalisation import BGR_CAFFE, RGB_IMAGENET, Normalisation


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How one code base names the parameters of one architecture.

    `prefixes` maps dotted prefixes of its keys to ours; of several that fit, the longest is used.
    """

    name: str
    architecture: str
    marker: str  # a key that no other layout has
    prefixes: Mapping[str, str]
    traits: Mapping[str, Any]
    normalisation: Normalisation
    inplace_abn: bool = False  # norms scale by |weight| + eps, and the file has no num_batches_tracked


def _pairs(theirs: str, ours: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}{their}": f"{ours}{our}" for their, our in names.items()}


_DEEP_STEM = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2", "6": "conv3", "7": "bn3"}
_CONV_BN = {"0": "conv", "1": "norm"}
_AUX = {"0": "block.conv", "1": "block.norm", "4": "classifier"}
_STAGES = {f"layer{n}": f"layer{n}" for n in range(1, 5)}
_BACKBONE = {name: name for n in (1, 2, 3) for name in (f"conv{n}", f"bn{n}")} | _STAGES
_TORCHVISION_TRAITS = {**PRESETS["kdcache"], "dropout_channels": False}

# Searched in this order: torchvision's FCN marker comes last, because it is the least specific.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="mmseg",
        architecture="pspnet",
        marker="decode_head.psp_modules.0.1.conv.weight",
        prefixes=_pairs("backbone.", "backbone.", _BACKBONE)
        | _pairs("backbone.stem.", "backbone.", _DEEP_STEM)
        | {f"decode_head.psp_modules.{n}.1.conv": f"head.branches.{n}.conv" for n in range(4)}
        | {f"decode_head.psp_modules.{n}.1.bn": f"head.branches.{n}.norm" for n in range(4)}
        | _pairs("decode_head.bottleneck.", "head.bottleneck.", {"conv": "conv", "bn": "norm"})
        | _pairs("auxiliary_head.convs.0.", "aux.block.", {"conv": "conv", "bn": "norm"})
        | {"decode_head.conv_seg": "classifier", "auxiliary_head.conv_seg": "aux.classifier"},
        traits=PRESETS["mmseg"],
        normalisation=RGB_IMAGENET,
    ),
    Layout(
        name="cirkd",
        architecture="pspnet",
        marker="head.psp.conv1.0.weight",
        prefixes=_pairs("pretrained.", "backbone.", _BACKBONE)
        | {f"head.psp.conv{n + 1}.0": f"head.branches.{n}.conv" for n in range(4)}
        | {f"head.psp.conv{n + 1}.1": f"head.branches.{n}.norm" for n in range(4)}
        | _pairs("head.block.", "head.bottleneck.", _CONV_BN)
        | _pairs("auxlayer.block.", "aux.", _AUX)
        | {"head.classifier": "classifier"},
        traits=PRESETS["cirkd"],
        normalisation=BGR_CAFFE,
    ),
    Layout(
        name="cirkd",
        architecture="deeplabv3",
        marker="head.aspp.b0.0.weight",
        prefixes=_pairs("pretrained.", "backbone.", _BACKBONE)
        | _pairs("head.aspp.b0.", "head.branches.0.", _CONV_BN)
        | {f"head.aspp.b{n}.block.0": f"head.branches.{n}.conv" for n in (1, 2, 3)}
        | {f"head.aspp.b{n}.block.1": f"head.branches.{n}.norm" for n in (1, 2, 3)}
        | _pairs("head.aspp.b4.gap.", "head.pool.", {"1": "conv", "2": "norm"})
        | _pairs("head.aspp.project.", "head.project.", _CONV_BN)
        | _pairs("head.block.", "head.bottleneck.", _CONV_BN)
        | _pairs("auxlayer.block.", "aux.", _AUX)
        | {"head.block.4": "classifier"},
        traits=PRESETS["cirkd"],
        normalisation=BGR_CAFFE,
    ),
    Layout(
        name="semseg",
        architecture="pspnet",
        marker="ppm.features.0.1.weight",
        prefixes=_pairs("layer0.", "backbone.", _DEEP_STEM)
        | _pairs("", "backbone.", _STAGES)
        | {f"ppm.features.{n}.1": f"head.branches.{n}.conv" for n in range(4)}
        | {f"ppm.features.{n}.2": f"head.branches.{n}.norm" for n in range(4)}
        | _pairs("cls.", "head.bottleneck.", _CONV_BN)
        | _pairs("aux.", "aux.", _AUX)
        | {"cls.4": "classifier"},
        traits=PRESETS["semseg"],
        normalisation=RGB_IMAGENET,
    ),
    Layout(
        name="skd",
        architecture="pspnet",
        marker="pspmodule.stages.0.1.weight",
        prefixes=_pairs("", "backbone.", _BACKBONE)
        | {f"pspmodule.stages.{n}.1": f"head.branches.{n}.conv" for n in range(4)}
        | {f"pspmodule.stages.{n}.2": f"head.branches.{n}.norm" for n in range(4)}
        | _pairs("pspmodule.bottleneck.", "head.bottleneck.", _CONV_BN)
        | _pairs("dsn.", "aux.", {"0": "block.conv", "1": "block.norm", "3": "classifier"})
        | {"head": "classifier"},
        traits=PRESETS["skd"],
        normalisation=BGR_CAFFE,
        inplace_abn=True,
    ),
    Layout(
        name="torchvision",
        architecture="deeplabv3",
        marker="classifier.0.convs.0.0.weight",
        prefixes=_pairs("backbone.", "backbone.", _BACKBONE)
        | {f"classifier.0.convs.{n}.0": f"head.branches.{n}.conv" for n in range(4)}
        | {f"classifier.0.convs.{n}.1": f"head.branches.{n}.norm" for n in range(4)}
        | _pairs("classifier.0.convs.4.", "head.pool.", {"1": "conv", "2": "norm"})
        | _pairs("classifier.0.project.", "head.project.", _CONV_BN)
        | _pairs("classifier.", "head.bottleneck.", {"1": "conv", "2": "norm"})
        | _pairs("aux_classifier.", "aux.", _AUX)
        | {"classifier.4": "classifier"},
        traits={**_TORCHVISION_TRAITS, "dropout": 0.0},
        normalisation=RGB_IMAGENET,
    ),
    Layout(
        name="torchvision",
        architecture="fcn",
        marker="classifier.0.weight",
        prefixes=_pairs("backbone.", "backbone.", _BACKBONE)
        | _pairs("classifier.", "head.bottleneck.", _CONV_BN)
        | _pairs("aux_classifier.", "aux.", _AUX)
        | {"classifier.4": "classifier"},
        traits=_TORCHVISION_TRAITS,
        normalisation=RGB_IMAGENET,
    ),
)
