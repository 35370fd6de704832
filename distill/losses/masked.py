"""Weighted operations on maps: softmax, L2 norm, pools, BatchNorm.

The weight of a cell is the fraction of its area that counts, see region.Region. With all weights 1 the results are those
of torch's own operations. A cell of weight 0 has no effect and gets no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.distill.losses.processes import sum_over_processes
from kdcache.distill.losses.region import MIN_AREA


def log_softmax_over_cells(
    maps: Tensor,  # (N, C, h, w)
    weights: Tensor,  # (N, h, w)
) -> Tensor:
    """Log-softmax of every channel over its cells, (N, C, h x w); the lowest finite number at cells of weight 0."""
    area = weights.flatten(1)[:, None].to(maps.dtype)
    is_excluded = area == 0
    # exp(x + log w) = w exp(x). Excluded cells are not -inf: 0 x (-inf - -inf) in a KL divergence would be NaN.
    lifted = maps.flatten(2) + area.masked_fill(is_excluded, 1).log()
    lowest = torch.finfo(maps.dtype).min
    return F.log_softmax(lifted.masked_fill(is_excluded, lowest), dim=2)


def normalise_maps(
    maps: Tensor,  # (N, h, w)
    weights: Tensor,  # (N, h, w)
) -> Tensor:
    """Every image's map divided by its L2 norm, (N, h, w)."""
    weighted = maps * weights.to(maps.dtype).sqrt()
    norms: Tensor = torch.linalg.vector_norm(weighted, dim=(1, 2), keepdim=True)
    return maps / norms.clamp(min=1e-12)


def average_pool(
    maps: Tensor,  # (N, C, h, w)
    weights: Tensor,  # (N, h, w)
    kernel: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Weighted means over windows that cover the map, (N, C, i, j), 0 for a window of weight 0; and the windows' weights."""
    area = weights[:, None].to(maps.dtype)
    sums, areas = (F.avg_pool2d(m, kernel, ceil_mode=True) for m in (maps * area, area))
    return sums / areas.clamp(min=MIN_AREA), areas[:, 0]


def max_pool(
    maps: Tensor,  # (N, C, h, w)
    weights: Tensor,  # (N, h, w)
    kernel: tuple[int, int],
    *,
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    """Maxima over windows, (N, C, i, j), 0 for a window of weight 0; and the windows' weights, (N, i, j)."""
    area = weights[:, None].to(maps.dtype)
    areas = F.avg_pool2d(area, kernel, ceil_mode=ceil_mode)
    lowest = torch.finfo(maps.dtype).min
    pooled = F.max_pool2d(maps.masked_fill(area == 0, lowest), kernel, ceil_mode=ceil_mode)
    return pooled.masked_fill(areas == 0, 0), areas[:, 0]


class MaskedBatchNorm(nn.Module):
    """Weighted BatchNorm over all processes. It keeps no running statistics: losses are only used in training."""

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
        total = sum_over_processes(area.sum()).clamp(min=MIN_AREA)
        mean = sum_over_processes((maps * area).sum(dim=(0, 2, 3))) / total
        centred = maps - mean[:, None, None]
        variance = sum_over_processes((centred.square() * area).sum(dim=(0, 2, 3))) / total
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]
