"""Replay on a device: the crops of a batch made where they are used, equal to the byte with `replay`'s.

    worker: boxes copied out of decoded images -> one buffer -> device: resize, colours, mirror, padding -> crops

A worker that cuts a 512x1024 crop with NumPy needs 11 ms; one that copies its box out of raw pixels 0.2 ms. All of the
arithmetic is `pixels`' in torch integers, so a CUDA device, a CPU and NumPy give the same bytes. On a CPU the blocked
loops of `pixels` are 2.4 times as fast as this, so workers cut crops there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.cache.images.classes import IGNORE
from kdcache.cache.views.pixels import COLOUR_BITS, colour_map
from kdcache.cache.views.policy import ViewPolicy
from kdcache.cache.views.replay import check_fit
from kdcache.cache.views.view import View

_NO_LABEL = -1  # in place of a label's offset
_FIELDS = 7 + 1 + 9  # offsets of pixels and label, box size, valid size, flip; bias and matrix of the colours
_Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Boxes:
    """The source pixels of a batch of views, and what to make of them."""

    buffer: Tensor  # (4 B,) uint8: the RGB boxes of all views, one behind the other, then their labels
    rows: Tensor  # (N, _FIELDS) int64, see box_rows

    @property
    def pixels(self) -> Tensor:
        """(3 B,) uint8."""
        return self.buffer[: len(self.buffer) // 4 * 3]

    @property
    def labels(self) -> Tensor:
        """(B,) uint8; undefined for views without a label."""
        return self.buffer[len(self.buffer) // 4 * 3 :]

    @property
    def valid_size(self) -> Tensor:
        """(N, 2) int64 height and width of the crops without their padding."""
        return self.rows[:, 4:6]

    def to(self, device: torch.device) -> "Boxes":
        """The boxes on `device`; from pinned memory the copies do not wait."""
        return Boxes(self.buffer.to(device, non_blocking=True), self.rows.to(device, non_blocking=True))


def box_bytes(views: Sequence[View]) -> int:
    """Pixels in the boxes of `views`: bytes of their labels; three times that of their RGB."""
    return sum(view.box_height * view.box_width for view in views)


def box_rows(
    views: Sequence[View],
    policy: ViewPolicy,
    images: Sequence[_Bytes],  # (H, W, 3) RGB each
    labels: Sequence[_Bytes | None],  # (H, W) train ids each
) -> Tensor:
    """What to make of each view's box, and where it lies in the buffer of `copy_boxes`, (N, _FIELDS) int64.

    Raises:
        StoreMismatchError: an image is smaller than its view's box, or a view larger than the policy's crop.
    """
    rows, start = [], 0
    for view, image, label in zip(views, images, labels, strict=True):
        check_fit(view, (policy.crop_height_px, policy.crop_width_px), image.shape[:2])
        rows.append(_row(view, start, start if label is not None else _NO_LABEL))
        start += view.box_height * view.box_width
    return torch.tensor(rows, dtype=torch.int64)


def copy_boxes(
    views: Sequence[View],
    images: Sequence[_Bytes],
    labels: Sequence[_Bytes | None],
    buffer: Tensor,  # (4 * box_bytes(views),) uint8, such as shared memory that is used again
) -> None:
    """Copy the boxes of some views into one buffer: all pixels, then all labels. Nothing else is done to a pixel."""
    area, start = box_bytes(views), 0
    pixels, ids = buffer[: 3 * area].numpy(), buffer[3 * area :].numpy()
    for view, image, label in zip(views, images, labels, strict=True):
        down, across = (
            slice(view.top, view.top + view.box_height),
            slice(view.left, view.left + view.box_width),
        )
        shape, end = (view.box_height, view.box_width), start + view.box_height * view.box_width
        pixels[3 * start : 3 * end].reshape(*shape, 3)[:] = image[down, across]
        if label is not None:
            ids[start:end].reshape(shape)[:] = label[down, across]
        start = end


def replay_boxes(boxes: Boxes, policy: ViewPolicy) -> tuple[Tensor, Tensor, Tensor]:
    """Crops (N, H, W, 3) uint8, labels (N, H, W) uint8 and valid sizes (N, 2) int64 on the boxes' device.

    The bytes are those of `replay`. Nothing here waits for the device: sizes are the policy's, never a tensor's value.
    """
    crop_height, crop_width = policy.crop_height_px, policy.crop_width_px
    pixel_start, label_start, box_height, box_width, height, width, flip = boxes.rows[:, :7].T
    down = torch.arange(crop_height, device=boxes.rows.device)  # rows of the crop
    across = torch.arange(crop_width, device=boxes.rows.device)
    mirrored = width[:, None] - 1 - across
    across_source = torch.where(flip[:, None] == 1, mirrored, across).clamp(min=0)  # (N, W)
    inside = (down < height[:, None])[:, :, None] & (across < width[:, None])[:, None, :]  # (N, H, W)

    above, below, row_weight = _bilinear_taps(down, box_height, height)
    left, right, column_weight = _bilinear_taps(across_source, box_width, width)
    row_weight, column_weight = row_weight[:, :, None, None], column_weight[:, None, :, None]
    first, second = (
        _blend(
            _take(boxes.pixels, pixel_start, box_width, above, columns),
            _take(boxes.pixels, pixel_start, box_width, below, columns),
            row_weight,
        )
        for columns in (left, right)
    )
    image = _distort(_blend(first, second, column_weight), boxes.rows[:, 7:].to(torch.int32))
    image = image.masked_fill_(~inside[..., None], 0).to(torch.uint8)

    nearest_row = _nearest(down, box_height, height)
    nearest_column = _nearest(across_source, box_width, width)
    offsets = (
        label_start[:, None, None]
        + nearest_row[:, :, None] * box_width[:, None, None]
        + nearest_column[:, None]
    )
    labelled = inside & (label_start != _NO_LABEL)[:, None, None]
    label = boxes.labels[offsets.clamp(min=0)].masked_fill(~labelled, IGNORE)
    return image, label, torch.stack([height, width], dim=1)


def _row(view: View, pixel_start: int, label_start: int) -> list[int]:
    # Without distortion the map is 4096 on the diagonal and rounds to the same pixels, so that one path serves all.
    matrix, bias = colour_map(
        view.brightness_levels, view.contrast_milli, view.saturation_milli, view.hue_degrees
    )
    colours = [factor for row in matrix for factor in row]
    sizes = [view.box_height, view.box_width, view.height, view.width]
    return [3 * pixel_start, label_start, *sizes, view.flip, bias, *colours]


def _bilinear_taps(
    positions: Tensor,  # (W,) or (N, W) in the resized box
    source: Tensor,  # (N,) pixels of the box
    length: Tensor,  # (N,) pixels it is resized to
) -> tuple[Tensor, Tensor, Tensor]:
    """As pixels._bilinear_taps: (N, W) int64 before and after, (N, W) int32 weight of the latter in 1/256."""
    source, length = source[:, None], length[:, None]
    centre = (2 * positions + 1) * source * 256 // (2 * length) - 128
    centre = torch.minimum(centre.clamp(min=0), (source - 1) * 256)
    before = centre >> 8
    return before, torch.minimum(before + 1, source - 1), (centre & 255).to(torch.int32)


def _nearest(positions: Tensor, source: Tensor, length: Tensor) -> Tensor:
    source, length = source[:, None], length[:, None]
    return torch.minimum((2 * positions + 1) * source // (2 * length), source - 1)  # the padding's lie beyond


def _take(
    pixels: Tensor,  # (B,) uint8
    start: Tensor,  # (N,) of each box
    box_width: Tensor,  # (N,)
    rows: Tensor,  # (N, H)
    columns: Tensor,  # (N, W)
) -> Tensor:
    """The pixels at all rows and columns, (N, H, W, 3) int32."""
    channel = torch.arange(3, device=pixels.device)
    in_row = (3 * columns)[:, None, :, None] + channel
    # 32 bits halve what is read for the indices, and a batch's boxes are never 2 GiB.
    index = (start[:, None] + 3 * rows * box_width[:, None])[:, :, None, None].to(torch.int32) + in_row.to(
        torch.int32
    )
    return pixels.index_select(0, index.flatten()).view(index.shape).to(torch.int32)


def _blend(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    return (first * (256 - weight) + second * weight + 128) >> 8


def _distort(
    image: Tensor,  # (N, H, W, 3) int32
    colours: Tensor,  # (N, 10) int32: bias, and the matrix row by row
) -> Tensor:
    bias, matrix = colours[:, 0, None, None], colours[:, 1:].reshape(-1, 3, 3, 1, 1)
    red, green, blue = image.unbind(dim=3)
    mixed = [
        (red * matrix[:, c, 0] + green * matrix[:, c, 1] + blue * matrix[:, c, 2] + bias) >> COLOUR_BITS
        for c in range(3)
    ]
    return torch.stack(mixed, dim=3).clamp_(0, 255)
