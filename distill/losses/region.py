"""The part of a batch that takes part in distillation, and means over it.

Padding never takes part. Void pixels, where the teacher has an opinion, do, unless `kd_ignore` is "void". The code that
methods were published with masks neither: "published" does as they do.

Means are over all processes. Padding and void are spread unevenly over them, and a mean of means would weigh a pixel by
the company it keeps.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.cache.images.classes import IGNORE
from kdcache.cache.views.maps import cell_weights, labelled_cell_weights
from kdcache.distill.losses.processes import count_processes, process_rank, sum_over_processes

LEAST = 1e-9
"""Cells: less than any area that is not nothing, and far from overflow when one divides by it."""


class Totals(NamedTuple):
    """What the processes of a step share: the pixels that sums are divided by, and a seed.

    Pixels are global counts, divided by the number of processes. DDP averages gradients over processes, so
    sum / (global / processes) averages to sum of sums / global.
    """

    labelled: Tensor  # () float64, at least 1 / processes
    distilled: Tensor  # () float64, at least 1 / processes
    seed: int = 0
    """Of draws that all processes make alike."""


def share_totals(
    counts: Tensor,  # (2,) float64, `Method.count` summed over all processes
    processes: int,
    seed: int = 0,
) -> Totals:
    """Totals for one process: at least one pixel, so that a batch without labels gives zero and not a NaN."""
    labelled, distilled = (counts.clamp(min=1) / processes).unbind()
    return Totals(labelled, distilled, seed)


@dataclass(frozen=True, slots=True)
class Region:
    """One process's part of a batch, and what of it takes part in distillation."""

    labels: Tensor  # (N, H, W) uint8 or int64
    valid_size: Tensor  # (N, 2) integer
    total_px: Tensor  # () float64, `Totals.distilled`
    kd_ignore: str  # a name of config.KD_IGNORES
    draws: torch.Generator = field(default_factory=torch.Generator)
    """Random numbers, the same ones in every process."""

    def weights(self, map_size: tuple[int, int]) -> Tensor:
        """The part of every cell of a map that takes part, (N, h, w) float32 in [0, 1]."""
        if self.kd_ignore == "published":
            return torch.ones((len(self.labels), *map_size), device=self.labels.device)
        if self.kd_ignore == "void":
            return labelled_cell_weights(self.labels, map_size)
        return cell_weights(self.valid_size, (self.labels.shape[-2], self.labels.shape[-1]), map_size)

    def classes(self, map_size: tuple[int, int]) -> Tensor:
        """The label of every cell of a map, that of its first pixel, (N, h, w) int64; IGNORE where there is none."""
        labels = F.interpolate(self.labels[:, None].float(), size=map_size, mode="nearest")
        return labels[:, 0].long()

    def mean(
        self,
        cells: Tensor,  # (N, h, w) at any resolution
    ) -> Tensor:
        """Mean over the crops' area, a scalar: a cell weighs the part of it that takes part."""
        return (cells * self._areas_px(cells)).sum() / self.total_px.to(cells.dtype)

    def mean_of_images(
        self,
        values: Tensor,  # (N,)
        map_size: tuple[int, int],
    ) -> Tensor:
        """Mean over images, a scalar: an image weighs its area that takes part."""
        areas_px = self._areas_px(values.new_empty((len(values), *map_size))).sum(dim=(1, 2))
        return (values * areas_px).sum() / self.total_px.to(values.dtype)

    def labelled_mean(
        self,
        cells: Tensor,  # (N, h, w)
    ) -> Tensor:
        """Mean over the cells that have a class, see `classes`, a scalar; zero where no cell of the batch has."""
        weights = self.labelled_weights(cells)
        total = sum_over_processes(weights.sum()) / count_processes()
        return (cells * weights).sum() / total.clamp(min=LEAST)

    def labelled_weights(self, like: Tensor) -> Tensor:
        """`weights` where a cell has a class and 0 elsewhere, of the size and type of (N, ..., h, w) maps."""
        size = (like.shape[-2], like.shape[-1])
        return (self.weights(size) * (self.classes(size) != IGNORE)).to(like.dtype)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Numbers from [0, 1), (N, *shape) float32: an image's do not depend on the number of processes."""
        n = len(self.labels)
        numbers = torch.rand((n * count_processes(), *shape), generator=self.draws)
        return send(numbers[process_rank() * n :][:n], self.labels.device)

    def _areas_px(self, cells: Tensor) -> Tensor:
        # In pixels, not cells: then one global count serves targets of any resolution.
        cell_px = self.labels[0].numel() / cells[0].numel()
        return self.weights((cells.shape[-2], cells.shape[-1])).to(cells.dtype) * cell_px


def send(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers drawn on the host, on `device`. To CUDA by way of pinned memory: from any other the copy would wait."""
    if device.type == "cuda" and torch.cuda.is_available():
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)
