"""A trained student: save it with everything that is needed to use it, load it, predict with it.

student = load_student("runs/logit/student.safetensors")
classes = student.predict(image)  # (H, W, 3) uint8 RGB -> (H, W) int64 class ids
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.errors import NotFoundError, UsageError, WeightsError
from kdcache.cache.images.classes import ClassSet
from kdcache.cache.networks.checkpoints import (
    Checkpoint,
    load_checkpoint,
    save_network,
)
from kdcache.cache.networks.network import SegmentationNetwork
from kdcache.cache.networks.normalisation import Normalisation
from kdcache.distill.runfolder import CHECKPOINT, STUDENT
from kdcache.distill.scoring.evaluate import EvalMode, as_predictor, predict_logits


@dataclass(frozen=True, slots=True)
class Student:
    """A trained network with everything that is needed to use it."""

    network: SegmentationNetwork
    normalisation: Normalisation
    class_names: tuple[str, ...]  # empty if the file does not name them
    palette: tuple[tuple[int, int, int], ...]  # RGB by class, empty if the file has none
    meta: Mapping[str, Any]  # what the file says besides, such as "dataset" and, from save_student, "run"

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to `device`; returns this student."""
        self.network.to(device)
        return self

    def logits(self, image: "np.ndarray[Any, Any]", mode: EvalMode | None = None) -> Tensor:
        """Logits at the image's size, (C, H, W) float32 on the network's device.

        Args:
            image: (H, W, 3) uint8 RGB of any size. The result takes 4 x C x H x W bytes.
            mode: how to run the network; by default once over the whole image, at its own size.

        Raises:
            UsageError: the image has another shape or dtype.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UsageError(f"an image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        device = next(self.network.parameters()).device
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device)
        predictor = as_predictor(self.network, self.normalisation)
        align_corners = self.network.config.align_corners
        with torch.inference_mode():
            return predict_logits(predictor, pixels, image.shape[:2], mode or EvalMode(), align_corners)

    def predict(self, image: "np.ndarray[Any, Any]", mode: EvalMode | None = None) -> "np.ndarray[Any, Any]":
        """Class ids of an image, (H, W) int64; see `logits`."""
        prediction: np.ndarray[Any, Any] = self.logits(image, mode).argmax(dim=0).cpu().numpy()
        return prediction


def save_student(
    path: str | Path,
    network: SegmentationNetwork,
    normalisation: Normalisation,
    *,
    dataset: str,
    classes: ClassSet,
    run: Mapping[str, Any] | None = None,
) -> str:
    """Write a student to a safetensors file with everything that `load_student` needs.

    Args:
        dataset: name of the data set that it was trained on.
        run: JSON values about the run that made it (method, steps, store key, ...).

    Returns:
        The file's sha256.
    """
    meta = {
        "dataset": dataset,
        "class_names": list(classes.names),
        "palette": [list(colour) for colour in classes.palette],
        "run": dict(run or {}),
    }
    return save_network(path, network, normalisation=normalisation, meta=meta)


def load_student(path: str | Path, device: torch.device | str = "cpu") -> Student:
    """A student in evaluation mode, from a file of `save_student`, the folder of a run, or any known checkpoint.

    Raises:
        NotFoundError: there is no such file, or the run is not finished.
        WeightsError: the layout of the file is unknown, or its keys do not fit.
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
            f"no run and no checkpoint at {path}", hint="give the folder of a run or a weights file"
        )
    if path.is_dir() and not (path / STUDENT).is_file():
        saved = sorted((path / CHECKPOINT).glob(f"step-*/{STUDENT}"))
        raise NotFoundError(
            f"{path} has no {STUDENT}" + (": the run is not finished" if saved else ""),
            hint=f"use the student of its last checkpoint: {saved[-1]}"
            if saved
            else "give the folder of a run or a weights file",
        )
    return path / STUDENT if path.is_dir() else path


def _class_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    names = tuple(str(name) for name in checkpoint.meta.get("class_names", ()))
    if names and len(names) != checkpoint.config.classes:
        raise WeightsError(
            f"{checkpoint.path} names {len(names)} classes, but its network has {checkpoint.config.classes}"
        )
    return names
