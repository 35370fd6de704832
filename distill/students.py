"""Students: a network to train, and a trained one to use.

A student starts from ImageNet weights of its backbone (torchvision's, by default), from a file, or from nothing when
that is asked for by name. It never starts from nothing because a download failed: a random start costs some ten
points of mIoU and looks like a bad method.

    from kdcache.distill.students import load_student
    student = load_student("runs/logit/student.safetensors")
    classes = student.predict(image)  # (H, W, 3) uint8 RGB -> (H, W) int64 class ids
"""

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlparse

import numpy as np
import torch
from torch import Tensor
from torchvision.models import (
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    WeightsEnum,
)

from kdcache.cache.checkpoints import Checkpoint, file_sha256, load_backbone, load_checkpoint, save_network
from kdcache.cache.classes import ClassSet
from kdcache.cache.errors import NotFoundError, UsageError, WeightsError
from kdcache.cache.networks import SegmentationNetwork, build_network, network_config
from kdcache.cache.normalisation import RGB_IMAGENET, Normalisation
from kdcache.distill.evaluate import EvalRecipe, as_predictor, predict_logits
from kdcache.distill.runfolder import CHECKPOINT, STUDENT

# torchvision's first release of each. V2 weights of ResNet-50 and 101 classify better and segment no better without
# a recipe of their own, and every published number of the field starts from these.
IMAGENET_WEIGHTS: dict[str, WeightsEnum] = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": ResNet101_Weights.IMAGENET1K_V1,
}


@dataclass(frozen=True, slots=True)
class Student:
    """A trained network with all that is needed to use it."""

    network: SegmentationNetwork
    normalisation: Normalisation
    class_names: tuple[str, ...]  # empty where the file does not say
    palette: tuple[tuple[int, int, int], ...]  # RGB by class, empty where the file does not say
    meta: Mapping[str, Any]

    def to(self, device: torch.device | str) -> Self:
        """The same student, its weights moved to `device`."""
        self.network.to(device)
        return self

    def logits(self, image: "np.ndarray[Any, Any]", recipe: EvalRecipe | None = None) -> Tensor:
        """Logits at the image's size, (C, H, W) float32 on the network's device.

        Args:
            image: (H, W, 3) uint8 RGB of any size; memory grows with C H W.
            recipe: sliding windows or a resize first; whole image as it is by default.

        Raises:
            UsageError: the image has another shape or type.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UsageError(f"an image is (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
        device = next(self.network.parameters()).device
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device)
        predictor = as_predictor(self.network, self.normalisation)
        align_corners = self.network.config.align_corners
        with torch.inference_mode():
            return predict_logits(predictor, pixels, image.shape[:2], recipe or EvalRecipe(), align_corners)

    def predict(
        self, image: "np.ndarray[Any, Any]", recipe: EvalRecipe | None = None
    ) -> "np.ndarray[Any, Any]":
        """Class ids of an image, (H, W) int64; see `logits`."""
        prediction: np.ndarray[Any, Any] = self.logits(image, recipe).argmax(dim=0).cpu().numpy()
        return prediction


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


def save_student(
    path: str | Path,
    network: SegmentationNetwork,
    normalisation: Normalisation,
    *,
    dataset: str,
    classes: ClassSet,
    run: Mapping[str, Any] | None = None,
) -> str:
    """Write a student to a safetensors file that says all about itself; returns its sha256.

    Args:
        run: JSON values about the run that made it (method, steps, store key, ...).
    """
    meta = {
        "dataset": dataset,
        "class_names": list(classes.names),
        "palette": [list(colour) for colour in classes.palette],
        "run": dict(run or {}),
    }
    return save_network(path, network, normalisation=normalisation, meta=meta)


def load_student(path: str | Path, device: torch.device | str = "cpu") -> Student:
    """A student in evaluation mode, from a file of `save_student`, its run's folder, or any known checkpoint.

    Raises:
        NotFoundError: there is no such file.
        WeightsError: its layout is unknown or its keys do not fit.
    """
    checkpoint = load_checkpoint(_student_file(Path(path)))
    return Student(
        network=checkpoint.network().to(device),
        normalisation=checkpoint.normalisation,
        class_names=_class_names(checkpoint),
        palette=tuple((int(r), int(g), int(b)) for r, g, b in checkpoint.meta.get("palette", ())),
        meta=checkpoint.meta,
    )


def _student_file(path: Path) -> Path:
    if not path.exists():
        raise NotFoundError(
            f"no run and no checkpoint at {path}", hint="name a run's folder or a weights file"
        )
    if path.is_dir() and not (path / STUDENT).is_file():
        begun = sorted((path / CHECKPOINT).glob(f"step-*/{STUDENT}"))
        raise NotFoundError(
            f"{path} holds no {STUDENT}" + (": the run is not finished" if begun else ""),
            hint=f"its last checkpoint has one: {begun[-1]}"
            if begun
            else "name a run's folder or a weights file",
        )
    return path / STUDENT if path.is_dir() else path


def _class_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    names = tuple(str(name) for name in checkpoint.meta.get("class_names", ()))
    if names and len(names) != checkpoint.config.classes:
        raise WeightsError(
            f"{checkpoint.path} names {len(names)} classes and has logits for {checkpoint.config.classes}"
        )
    return names


def _download(url: str, path: Path, backbone: str, progress: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=progress)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise NotFoundError(
            f"ImageNet weights of {backbone} are not at {path} and cannot be fetched from {url}: {error}",
            hint="--backbone-weights FILE, or --backbone-weights none for a random start",
        ) from None
