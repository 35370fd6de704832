"""Scores of a confusion matrix: IoU by class, mIoU, and accuracies.

The matrix counts the pixels of a whole split, [label, prediction]. So the IoU of a class is over all pixels of the split,
as Pascal VOC defines it, and not a mean over images.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcache.cache.images.classes import IGNORE, ClassSet


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Scores as fractions from 0 to 1, NaN where undefined.

    The IoU of a class without pixels in labels and predictions is NaN, and left out of `miou`. The IoU of a class that
    is only predicted is 0, and counts. `mean_accuracy` is over the classes with pixels in labels.
    """

    class_names: tuple[str, ...]
    iou: tuple[float, ...]
    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    images: int
    confusion: tuple[tuple[int, ...], ...]  # [label][prediction], pixels

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN becomes null."""
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
        """Plain text, in percent: a line for each class, then the means."""
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
    label: Tensor,  # (H, W) integer, 255 for void
    classes: int,
) -> Tensor:
    """The confusion matrix, (C, C) int64 pixel counts [label, prediction], on the tensors' device, without void pixels."""
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
    counts = confusion.cpu().to(torch.float64)  # a split has more pixels than float32 can count
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
