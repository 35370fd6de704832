"""Operations on maps in which a cell weighs the part of it that takes part: softmax, norm, pools, BatchNorm.

Where every cell takes part they are torch's own. A cell of weight 0 changes nothing and gets no gradient, and one of
weight 1/2 counts half.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.distill.losses.processes import sum_over_processes
from kdcache.distill.losses.region import LEAST


def log_softmax_over_cells(
    maps: Tensor,  # (N, C, h, w)
    weights: Tensor,  # (N, h, w)
) -> Tensor:
    """Of every channel over its cells, (N, C, h w); the lowest finite number where a cell takes no part."""
    area = weights.flatten(1)[:, None].to(maps.dtype)
    outside = area == 0
    # exp(x + log w) = w exp(x). Not -inf outside: 0 x (-inf - -inf) of a divergence would be a NaN.
    lifted = maps.flatten(2) + area.masked_fill(outside, 1).log()
    lowest = torch.finfo(maps.dtype).min
    return F.log_softmax(lifted.masked_fill(outside, lowest), dim=2)


def normalise_maps(
    maps: Tensor,  # (N, h, w)
    weights: Tensor,  # (N, h, w)
) -> Tensor:
    """Every image's map over its L2 norm."""
    weighted = maps * weights.to(maps.dtype).sqrt()
    norms: Tensor = torch.linalg.vector_norm(weighted, dim=(1, 2), keepdim=True)
    return maps / norms.clamp(min=1e-12)


def average_pool(
    maps: Tensor,  # (N, C, h, w)
    weights: Tensor,  # (N, h, w)
    kernel: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Means over windows that cover the map, (N, C, i, j), 0 where nothing takes part; and the windows' weights."""
    area = weights[:, None].to(maps.dtype)
    sums, areas = (F.avg_pool2d(m, kernel, ceil_mode=True) for m in (maps * area, area))
    return sums / areas.clamp(min=LEAST), areas[:, 0]


def max_pool(
    maps: Tensor,  # (N, C, h, w)
    weights: Tensor,  # (N, h, w)
    kernel: tuple[int, int],
    *,
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    """Maxima over windows, (N, C, i, j), 0 where nothing takes part; and the windows' weights, (N, i, j)."""
    area = weights[:, None].to(maps.dtype)
    areas = F.avg_pool2d(area, kernel, ceil_mode=ceil_mode)
    lowest = torch.finfo(maps.dtype).min
    pooled = F.max_pool2d(maps.masked_fill(area == 0, lowest), kernel, ceil_mode=ceil_mode)
    return pooled.masked_fill(areas == 0, 0), areas[:, 0]


class CellNorm(nn.Module):
    """BatchNorm over the cells that take part, over all processes, always by the batch's own statistics."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(
        self,
        maps: Tensor,  # (N, C, h, w)
        weights: Tensor,  # (N, h, w)
    ) -> Tensor:
        area = weights[:, None].to(maps.dtype)
        total = sum_over_processes(area.sum()).clamp(min=LEAST)
        mean = sum_over_processes((maps * area).sum(dim=(0, 2, 3))) / total
        centred = maps - mean[:, None, None]
        variance = sum_over_processes((centred.square() * area).sum(dim=(0, 2, 3))) / total
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]
