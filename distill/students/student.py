"""A trained student: saved with all that is needed to use it, loaded, and used.

from kdcache.distill.students.student import load_student
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

    def logits(self, image: "np.ndarray[Any, Any]", mode: EvalMode | None = None) -> Tensor:
        """Logits at the image's size, (C, H, W) float32 on the network's device.

        Args:
            image: (H, W, 3) uint8 RGB of any size; memory grows with C H W.
            mode: sliding windows or a resize first; whole image as it is by default.

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
