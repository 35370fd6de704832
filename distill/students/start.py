"""Where a student starts: ImageNet weights of its backbone (torchvision's, by default), a file, or random weights.

It starts from random weights only when you ask for them by name, never because a download failed: a random start costs
some ten points of mIoU and looks like a bad method.
"""

import http.client
from pathlib import Path
from urllib.parse import urlparse

import torch
from torchvision.models import (
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    WeightsEnum,
)

from kdcache.cache.errors import NotFoundError, UsageError, WeightsError
from kdcache.cache.networks.checkpoints import (
    file_sha256,
    load_backbone,
)
from kdcache.cache.networks.network import SegmentationNetwork, build_network, network_config
from kdcache.cache.networks.normalisation import RGB_IMAGENET, Normalisation

# torchvision's first release of each. V2 weights of ResNet-50 and 101 classify better and segment no better without
# a recipe of their own, and every published number of the field starts from these.
IMAGENET_WEIGHTS: dict[str, WeightsEnum] = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": ResNet101_Weights.IMAGENET1K_V1,
}


def build_student(
    name: str,
    classes: int,
    backbone_weights: str = "imagenet",
    *,
    preset: str = "",
    progress: bool = True,
) -> tuple[SegmentationNetwork, Normalisation]:
    """A student to train, on the CPU, and its input normalisation (ImageNet's RGB mean and std).

    Head and classifier are random: seed torch before.

    Args:
        name: a key of networks.NETWORKS.
        backbone_weights: "imagenet", "none", or the path of a ResNet's state dict with torchvision's names
            (.pth read with weights_only, or .safetensors); the classifier `fc` is dropped.
        preset: a key of networks.PRESETS, kdcache's own where empty; only a 7x7 stem takes torchvision's ImageNet
            weights.
        progress: draw torch.hub's download bar on stderr.

    Raises:
        UsageError: an unknown name or preset, or ImageNet weights for a deep stem.
        NotFoundError: the download fails or there is no such file.
        WeightsError: the file does not fit; its keys are listed.
    """
    network = build_network(network_config(name, classes, preset or "kdcache"))
    if backbone_weights == "none":
        return network, RGB_IMAGENET
    if backbone_weights == "imagenet":
        if network.config.stem != "7x7":
            raise UsageError(
                f"torchvision's ImageNet weights need the 7x7 stem; preset {preset!r} has {network.config.stem}",
                hint="--backbone-weights FILE with weights of that stem, --backbone-weights none, "
                "or the preset kdcache",
            )
        load_backbone(network.backbone, fetch_imagenet(network.config.backbone, progress=progress))
    else:
        load_backbone(network.backbone, backbone_weights)
    return network, RGB_IMAGENET


def fetch_imagenet(backbone: str, *, progress: bool = True) -> Path:
    """Path of torchvision's ImageNet weights, downloaded once into torch.hub's folder and checked by their digest.

    Raises:
        NotFoundError: they are not there and cannot be downloaded.
        WeightsError: the file has another digest.
    """
    url = IMAGENET_WEIGHTS[backbone].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.is_file():
        _download(url, path, backbone, progress)
    digest = path.stem.rpartition("-")[2]  # torchvision's convention: resnet18-f37072fd.pth
    if not file_sha256(path).startswith(digest):
        raise WeightsError(
            f"{path} is not torchvision's file: its sha256 does not begin with {digest}",
            hint="delete it; it is downloaded again",
        )
    return path


def _download(url: str, path: Path, backbone: str, progress: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=progress)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise NotFoundError(
            f"ImageNet weights of {backbone} are not at {path} and cannot be fetched from {url}: {error}",
            hint="--backbone-weights FILE, or --backbone-weights none for a random start",
        ) from None
