"""Scores of a network on a labelled split: mIoU, per-class IoU, pixel accuracy.

Two modes, both at a single scale and without flips, as the public code bases report their main results:

* whole: the image goes through the network once (mmsegmentation's and CIRKD's `whole`).
* slide: overlapping windows of a fixed size, with logits averaged where they overlap (hszhao/semseg, and
  mmsegmentation's `slide`). An image smaller than the window is padded with zeros after normalisation.

The result is a confusion matrix, so that the matrices of several processes add up to the same score.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.cache.errors import DataError, UsageError
from kdcache.cache.images.classes import IGNORE
from kdcache.cache.images.datasets import SegmentationDataset
from kdcache.cache.networks.network import SegmentationNetwork
from kdcache.cache.networks.normalisation import Normalisation
from kdcache.cache.progress import Progress, silent
from kdcache.cache.teachers.teacher import Teacher
from kdcache.distill.config import EVALUATION_MODES
from kdcache.distill.scoring.scores import Scores, count_confusion, score_confusion

STRIDE_RATE = 2 / 3  # of a window's size, as in hszhao/semseg
DECODE_AHEAD = 4  # images

Predictor = Callable[[Tensor, Tensor], Tensor]
"""(N, H, W, 3) uint8 RGB and (N, 2) heights and widths without padding -> (N, C, h, w) logits at any resolution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalMode:
    """How an image goes through the network.

    With `base_long_px` and `base_short_px` above 0, the image is first resized to fit that box, keeping its ratio, as in
    mmsegmentation's test pipelines. The scores are still computed at the label's own size.

    Raises:
        UsageError: an unknown mode, no window for "slide", or only one side of the box.
    """

    mode: str = "whole"
    crop_height_px: int = 0
    crop_width_px: int = 0
    base_long_px: int = 0
    base_short_px: int = 0

    def __post_init__(self) -> None:
        if self.mode not in EVALUATION_MODES:
            raise UsageError(f"unknown evaluation mode {self.mode!r}; known: {', '.join(EVALUATION_MODES)}")
        if self.mode == "slide" and (self.crop_height_px < 1 or self.crop_width_px < 1):
            raise UsageError("evaluation mode slide needs the size of its window", hint="--crop 512x1024")
        if (self.base_long_px > 0) != (self.base_short_px > 0) or self.base_long_px < self.base_short_px:
            raise UsageError(
                f"base_long_px {self.base_long_px} and base_short_px {self.base_short_px} are not the sides of a box"
            )


# mmsegmentation's test pipelines: configs/_base_/datasets/{ade20k,pascal_voc12}.py. Images of other data sets are not
# resized.
BASE_SIZES_PX: dict[str, tuple[int, int]] = {"ade20k": (2048, 512), "voc2012": (2048, 512)}


def eval_mode(dataset_name: str, mode: str = "whole", crop_size: tuple[int, int] = (0, 0)) -> EvalMode:
    """The evaluation mode of a data set, by its name as typed: "voc2012:options" is looked up as "voc2012"."""
    base_long_px, base_short_px = BASE_SIZES_PX.get(dataset_name.partition(":")[0], (0, 0))
    return EvalMode(
        mode=mode,
        crop_height_px=crop_size[0],
        crop_width_px=crop_size[1],
        base_long_px=base_long_px,
        base_short_px=base_short_px,
    )


def evaluate(
    model: nn.Module | Teacher | Predictor,
    dataset: SegmentationDataset,
    *,
    normalisation: Normalisation | None = None,
    mode: EvalMode | None = None,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    progress: Progress = silent,
) -> Scores:
    """Scores of a model on the first `limit` images of a split (default: all), in this process only.

    Args:
        model: a SegmentationNetwork on `device`, with its `normalisation`; a Teacher; or any Predictor.
        mode: default: that of the data set, see eval_mode.

    Raises:
        UsageError: the split has no labels, or its classes differ from the network's.
        DataError: a label contains a class id that the data set does not have.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    confusion = evaluate_confusion(
        model,
        dataset,
        range(count),
        normalisation=normalisation,
        mode=mode,
        device=device,
        progress=progress,
    )
    return score_confusion(confusion, dataset.classes, images=count)


def evaluate_confusion(
    model: nn.Module | Teacher | Predictor,
    dataset: SegmentationDataset,
    indices: Sequence[int],
    *,
    normalisation: Normalisation | None = None,
    mode: EvalMode | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Tensor:
    """The confusion matrix of some images, (C, C) int64 [label, prediction] on `device`.

    With w processes, process r takes `range(r, n, w)`; the sum of their matrices is that of the split. The modes of the
    modules and the random state are restored. The logits of an image take 4 x C x H x W bytes: 160 MB for Cityscapes,
    up to 2 GB for the largest images of ADE20K. Raises as `evaluate` does.
    """
    mode = mode or eval_mode(dataset.name)
    device = torch.device(device)
    classes = len(dataset.classes.names)
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    align_corners = _align_corners(model)
    with undisturbed(model, device), torch.no_grad():
        predictor = as_predictor(model, normalisation)
        for done, (index, image, label) in enumerate(_decode_ahead(dataset, indices)):
            if label is None:
                raise UsageError(
                    f"{dataset.name} {dataset.split} has no labels to score against",
                    hint="use a split with labels: --split val",
                )
            _check_label(label, classes, dataset.image_ids[index])
            logits = predict_logits(predictor, image.to(device), label.shape, mode, align_corners)
            if logits.shape[0] != classes:
                raise UsageError(
                    f"the network has {logits.shape[0]} classes, but {dataset.name} has {classes}"
                )
            confusion += count_confusion(logits.argmax(dim=0), label.to(device), classes)
            progress(done + 1, len(indices), "")
    return confusion


def predict_logits(
    predictor: Predictor,
    image: Tensor,  # (H, W, 3) uint8 RGB
    size: tuple[int, ...],  # (H', W') of the result
    mode: EvalMode,
    align_corners: bool = False,
) -> Tensor:
    """Logits of one image, (C, H', W') float32 on the image's device."""
    image = fit_image(image, mode.base_long_px, mode.base_short_px)
    if mode.mode == "slide":
        crop_size = (mode.crop_height_px, mode.crop_width_px)
        logits = slide_logits(predictor, image, crop_size, align_corners)
    else:
        logits = predictor(image[None], _sizes(image))
    # Enlarge logits, then take the argmax: the other way round, thin objects get blocky borders.
    return _enlarge(logits, tuple(size), align_corners)[0]


def slide_logits(
    predictor: Predictor,
    image: Tensor,  # (H, W, 3) uint8 RGB
    crop_size: tuple[int, int],
    align_corners: bool = False,
) -> Tensor:
    """Logits at the image's size, (1, C, H, W) float32: at each pixel, the mean over the windows that cover it."""
    height, width = image.shape[:2]
    # The value does not matter: the predictor normalises, and sets what is outside of `valid_size` to zero.
    padded = F.pad(image, (0, 0, 0, max(0, crop_size[1] - width), 0, max(0, crop_size[0] - height)))
    total: Tensor | None = None
    cover = torch.zeros(height, width, device=image.device)
    for top in window_starts(height, crop_size[0]):
        for left in window_starts(width, crop_size[1]):
            bottom, right = min(top + crop_size[0], height), min(left + crop_size[1], width)
            window = padded[top : top + crop_size[0], left : left + crop_size[1]]
            valid_size = torch.tensor([[bottom - top, right - left]], device=image.device)
            logits = _enlarge(predictor(window[None], valid_size), crop_size, align_corners)[0]
            if total is None:
                total = logits.new_zeros(logits.shape[0], height, width)
            total[:, top:bottom, left:right] += logits[:, : bottom - top, : right - left]
            cover[top:bottom, left:right] += 1
    assert total is not None
    return (total / cover)[None]


def window_starts(length_px: int, crop_px: int) -> list[int]:
    """Where windows start along one axis, in pixels: every 2/3 of their size, rounded up, and the last one at the end."""
    stride_px = math.ceil(crop_px * STRIDE_RATE)
    steps = max(0, math.ceil((length_px - crop_px) / stride_px))
    return [min(step * stride_px, max(0, length_px - crop_px)) for step in range(steps + 1)]


def fit_image(
    image: Tensor,  # (H, W, 3) uint8
    long_px: int,
    short_px: int,
) -> Tensor:
    """The image, resized to the largest size that fits long x short at its ratio, (H', W', 3) uint8."""
    if long_px == 0:
        return image
    height, width = image.shape[:2]
    factor = min(long_px / max(height, width), short_px / min(height, width))
    size = (int(height * factor + 0.5), int(width * factor + 0.5))
    if size == (height, width):
        return image
    # Without antialiasing, because mmsegmentation resizes with OpenCV.
    planes = F.interpolate(image.permute(2, 0, 1)[None].float(), size=size, mode="bilinear")
    return planes[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def as_predictor(
    model: nn.Module | Teacher | Predictor, normalisation: Normalisation | None = None
) -> Predictor:
    """A network with its normalisation, or a teacher, as a Predictor. Raises UsageError without a normalisation."""
    if isinstance(model, Teacher):
        return lambda crops, valid_size: model(crops, valid_size, ("logits",))["logits"]
    if isinstance(model, nn.Module):
        if normalisation is None:
            raise UsageError(
                "a network needs a normalisation to be evaluated", hint="pass normalisation=RGB_IMAGENET"
            )
        return lambda crops, valid_size: model(normalisation(crops, valid_size)).logits
    return model


@contextmanager
def undisturbed(model: nn.Module | Teacher | Predictor, device: torch.device) -> Iterator[None]:
    """Evaluation mode inside the `with`; afterwards the modules' modes and torch's random state are restored."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    # Module by module: model.train() would also wake BatchNorms that the caller had frozen.
    modes = [module.training for module in modules]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode


class _Sample(NamedTuple):
    image_index: int
    image: Tensor  # (H, W, 3) uint8
    label: Tensor | None  # (H, W) uint8


def _decode_ahead(dataset: SegmentationDataset, indices: Sequence[int]) -> Iterator[_Sample]:
    """Samples in order, decoded in two threads while the network runs. Threads are enough: Pillow releases the GIL."""

    def decode(index: int) -> _Sample:
        label = dataset.label(index)
        image = torch.from_numpy(np.ascontiguousarray(dataset.image(index)))
        return _Sample(index, image, None if label is None else torch.from_numpy(np.ascontiguousarray(label)))

    pending: list[Future[_Sample]] = []
    remaining = iter(indices)
    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            pending += [pool.submit(decode, index) for index in islice(remaining, DECODE_AHEAD)]
            while pending:
                sample = pending.pop(0).result()
                pending += [pool.submit(decode, index) for index in islice(remaining, 1)]
                yield sample
        finally:
            for future in pending:
                future.cancel()


def _align_corners(model: nn.Module | Teacher | Predictor) -> bool:
    module = model.module if isinstance(model, Teacher) else model
    return module.config.align_corners if isinstance(module, SegmentationNetwork) else False


def _check_label(label: Tensor, classes: int, image_id: str) -> None:
    highest = int(torch.where(label == IGNORE, 0, label).max())
    if highest >= classes:
        raise DataError(
            f"the label of {image_id} contains class id {highest}, but there are only {classes} classes"
        )


def _sizes(image: Tensor) -> Tensor:
    return torch.tensor([image.shape[:2]], device=image.device)


def _enlarge(logits: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    if tuple(logits.shape[-2:]) == size:
        return logits.float()
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=align_corners)
