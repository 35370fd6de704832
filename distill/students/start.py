"""A student's initial weights: torchvision's ImageNet weights for the backbone by default, or a file, or random ones."""

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

# V1, because published segmentation results start from these. V2 of ResNet-50 and 101 classifies better, and segments
# better only with a training recipe made for it.
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

    Head and classifier get random weights: seed torch first.

    Args:
        name: a key of cache.networks.network.NETWORKS.
        backbone_weights: "imagenet", "none", or the path of a ResNet's state dict with torchvision's names
            (.pth read with weights_only, or .safetensors). The classifier `fc` is dropped.
        preset: a key of cache.networks.network.PRESETS; kdcache's own if empty. torchvision's ImageNet weights need a
            preset with a 7x7 stem.
        progress: draw torch.hub's download bar on stderr.

    Raises:
        UsageError: an unknown name or preset, or ImageNet weights for a deep stem.
        NotFoundError: the download failed, or there is no such file.
        WeightsError: the weights in the file do not fit; the message lists the keys.
    """
    network = build_network(network_config(name, classes, preset or "kdcache"))
    if backbone_weights == "none":
        return network, RGB_IMAGENET
    if backbone_weights == "imagenet":
        if network.config.stem != "7x7":
            raise UsageError(
                f"torchvision's ImageNet weights need a 7x7 stem; preset {preset!r} has the stem {network.config.stem}",
                hint="--preset kdcache, --backbone-weights FILE with weights for this stem, or --backbone-weights none",
            )
        load_backbone(network.backbone, fetch_imagenet(network.config.backbone, progress=progress))
    else:
        load_backbone(network.backbone, backbone_weights)
    return network, RGB_IMAGENET


def fetch_imagenet(backbone: str, *, progress: bool = True) -> Path:
    """The path of torchvision's ImageNet weights, downloaded once into torch.hub's folder, with their digest checked.

    Raises:
        NotFoundError: the file is missing and the download failed.
        WeightsError: the file has another digest.
    """
    url = IMAGENET_WEIGHTS[backbone].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.is_file():
        _download(url, path, backbone, progress)
    digest = path.stem.rpartition("-")[2]  # torchvision's convention: resnet18-f37072fd.pth
    if not file_sha256(path).startswith(digest):
        raise WeightsError(
            f"{path} is damaged or not torchvision's file: its sha256 does not start with {digest}",
            hint=f"rm {path}; the next run downloads it again",
        )
    return path


def _download(url: str, path: Path, backbone: str, progress: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=progress)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        # Never fall back to random weights: they cost some ten points of mIoU, which would look like a bad method.
        raise NotFoundError(
            f"the ImageNet weights of {backbone} are missing at {path}, and the download from {url} failed: {error}",
            hint="--backbone-weights FILE, or --backbone-weights none for random weights",
        ) from None
