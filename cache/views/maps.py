"""Geometry of stride-8 maps over crops: how much of a cell counts, and how to resize one map to another's size.

A cell of an (h, w) map covers its part of an (H, W) crop, H/h x W/w pixels, also if these are not integers (713 -> 90).
With align_corners the outer cells are centred on the border pixels. Then these areas are an approximation, by less than
half a cell.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.cache.images.classes import IGNORE


def cell_weights(
    valid_size: Tensor,  # (N, 2) integer: height and width in crop pixels of the valid region, from the crop's top left
    crop_size: tuple[int, int],  # (H, W)
    map_size: tuple[int, int],  # (h, w)
) -> Tensor:
    """The part of each cell's area that is not padding, (N, h, w) float32 in [0, 1]."""
    height, width = (
        (
            valid_size[:, axis, None] * (map_size[axis] / crop_size[axis])
            - _arange(map_size[axis], valid_size)
        ).clamp(0, 1)
        for axis in (0, 1)
    )
    return (height[:, :, None] * width[:, None, :]).float()


def labelled_cell_weights(
    labels: Tensor,  # (N, H, W) uint8 or int64
    map_size: tuple[int, int],  # (h, w)
) -> Tensor:
    """The part of each cell's area that has a label, (N, h, w) float32 in [0, 1]. Padding has none."""
    labelled = (labels != IGNORE).float()
    rows = _cell_overlap(labels.shape[-2], map_size[0], labels.device)
    columns = _cell_overlap(labels.shape[-1], map_size[1], labels.device)
    return torch.einsum("ip,npq,jq->nij", rows, labelled, columns)


def resample(maps: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """(N, C, h, w) maps, bilinearly resized. Returns the same tensor if it has that size already."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


def working_precision(x: Tensor) -> Tensor:
    """The tensor in float32 if it has half precision; float32 and float64 are returned unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _arange(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device, dtype=torch.float64)


def _cell_overlap(pixels: int, cells: int, device: torch.device) -> Tensor:
    """(cells, pixels) float32: the part of each cell that each pixel covers."""
    cell_px = pixels / cells
    pixel = torch.arange(pixels, device=device, dtype=torch.float64)
    start = torch.arange(cells, device=device, dtype=torch.float64)[:, None] * cell_px
    overlap = torch.minimum(pixel + 1, start + cell_px) - torch.maximum(pixel, start)
    return (overlap.clamp(min=0) / cell_px).float()
