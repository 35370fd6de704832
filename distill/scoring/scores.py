"""Scores of a confusion matrix: IoU by class, their mean, and accuracies.

The matrix holds pixel counts [label, prediction] over a whole split, as the field's mIoU is defined (Pascal VOC): the
IoU of a class over all pixels of the split, not the mean of the IoUs of its images.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcache.cache.images.classes import IGNORE, ClassSet


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What a confusion matrix says. Fractions from 0 to 1; NaN where a class has nothing to be judged by.

    A class that stands in no label and in no prediction has no IoU and is left out of the mean. A class that is only
    predicted has IoU 0, and counts. `mean_accuracy` is over the classes that stand in a label.
    """

    class_names: tuple[str, ...]
    iou: tuple[float, ...]
    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    images: int
    confusion: tuple[tuple[int, ...], ...]  # [label][prediction], pixels

    def to_dict(self) -> dict[str, Any]:
        """JSON: a NaN becomes null."""
        return {
            "miou": _json_number(self.miou),
            "pixel_accuracy": _json_number(self.pixel_accuracy),
            "mean_accuracy": _json_number(self.mean_accuracy),
            "iou": {
                name: _json_number(value) for name, value in zip(self.class_names, self.iou, strict=True)
            },
            "images": self.images,
            "confusion": [list(row) for row in self.confusion],
        }

    def table(self) -> str:
        """Plain text: a line a class, then the means, in percent."""
        width = max(len(name) for name in (*self.class_names, "pixel accuracy"))
        lines = [f"{'class':<{width}}  {'IoU %':>6}"]
        lines += [f"{n:<{width}}  {_percent(v):>6}" for n, v in zip(self.class_names, self.iou, strict=True)]
        lines += [
            "",
            f"{'mIoU':<{width}}  {_percent(self.miou):>6}",
            f"{'pixel accuracy':<{width}}  {_percent(self.pixel_accuracy):>6}",
            f"{'mean accuracy':<{width}}  {_percent(self.mean_accuracy):>6}",
            f"{'images':<{width}}  {self.images:>6}",
        ]
        return "\n".join(lines)


def count_confusion(
    prediction: Tensor,  # (H, W) integer class ids
    label: Tensor,  # (H, W) integer, 255 where there is no class
    classes: int,
) -> Tensor:
    """(C, C) int64 pixel counts [label, prediction] on the tensors' device, unlabelled pixels left out."""
    labelled = label != IGNORE
    pairs = label[labelled].long() * classes + prediction[labelled].long()
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def score_confusion(
    confusion: Tensor,  # (C, C) integer, [label, prediction]
    classes: ClassSet,
    *,
    images: int,
) -> Scores:
    """Scores of a confusion matrix; see `Scores` for classes without pixels."""
    counts = confusion.cpu().to(torch.float64)
    hit, labelled, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    iou = hit / (labelled + predicted - hit)
    return Scores(
        class_names=classes.names,
        iou=tuple(iou.tolist()),
        miou=float(iou.nanmean()),
        pixel_accuracy=float(hit.sum() / counts.sum()),
        mean_accuracy=float((hit / labelled).nanmean()),
        images=images,
        confusion=tuple(tuple(row) for row in confusion.cpu().tolist()),
    )


def _json_number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
