"""The pixels of a batch that count in distillation, and means over them.

`kd_ignore` decides: "none" leaves out padding; "void" also unlabelled pixels, where the teacher may still be right;
"published" leaves out nothing, as most published code.

Means are over the batch of all processes. Processes differ in padding and void, so a mean of their means would give
pixels unequal weights.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.cache.images.classes import IGNORE
from kdcache.cache.views.maps import cell_weights, labelled_cell_weights
from kdcache.distill.losses.processes import count_processes, process_rank, sum_over_processes

MIN_AREA = 1e-9
"""In cells. Smaller than any area above 0, and large enough that dividing by it does not overflow."""


class Totals(NamedTuple):
    """Shared by the processes of a step: the pixel counts that sums are divided by, and a seed.

    The counts are those of all processes, divided by the number of processes: DDP averages gradients over processes, so
    the average of sum / (count / processes) is the sum of all sums / count.
    """

    labelled: Tensor  # () float64, at least 1 / processes
    distilled: Tensor  # () float64, at least 1 / processes
    seed: int = 0
    """Of the random numbers that all processes draw alike."""


def share_totals(
    counts: Tensor,  # (2,) float64, `Method.count` summed over all processes
    processes: int,
    seed: int = 0,
) -> Totals:
    """Totals for one process."""
    # At least one pixel, so that a batch without labels has a loss of 0 and not NaN.
    labelled, distilled = (counts.clamp(min=1) / processes).unbind()
    return Totals(labelled, distilled, seed)


@dataclass(frozen=True, slots=True)
class Region:
    """The pixels of one process's part of a batch that count in distillation, as weights of cells."""

    labels: Tensor  # (N, H, W) uint8 or int64
    valid_size: Tensor  # (N, 2) integer
    total_px: Tensor  # () float64, `Totals.distilled`
    kd_ignore: str  # a name of config.KD_IGNORES
    draws: torch.Generator = field(default_factory=torch.Generator)
    """Source of random numbers, in the same state in every process."""

    def weights(self, map_size: tuple[int, int]) -> Tensor:
        """The fraction of every cell's area that counts, for maps of a size, (N, h, w) float32 in [0, 1]."""
        if self.kd_ignore == "published":
            return torch.ones((len(self.labels), *map_size), device=self.labels.device)
        if self.kd_ignore == "void":
            return labelled_cell_weights(self.labels, map_size)
        return cell_weights(self.valid_size, (self.labels.shape[-2], self.labels.shape[-1]), map_size)

    def classes(self, map_size: tuple[int, int]) -> Tensor:
        """The class of every cell of a map, (N, h, w) int64; IGNORE where there is none."""
        # Nearest takes the class of the cell's first pixel, as IFVD's and CIRKD's code.
        labels = F.interpolate(self.labels[:, None].float(), size=map_size, mode="nearest")
        return labels[:, 0].long()

    def mean(
        self,
        cells: Tensor,  # (N, h, w) at any resolution
    ) -> Tensor:
        """Weighted mean over cells, a scalar."""
        return (cells * self._areas_px(cells)).sum() / self.total_px.to(cells.dtype)

    def mean_of_images(
        self,
        values: Tensor,  # (N,)
        map_size: tuple[int, int],
    ) -> Tensor:
        """Mean over images, a scalar. An image weighs as much as its area that counts."""
        areas_px = self._areas_px(values.new_empty((len(values), *map_size))).sum(dim=(1, 2))
        return (values * areas_px).sum() / self.total_px.to(values.dtype)

    def labelled_mean(
        self,
        cells: Tensor,  # (N, h, w)
    ) -> Tensor:
        """Weighted mean over the cells that have a class, a scalar; 0 if none of the batch has."""
        weights = self.labelled_weights(cells)
        total = sum_over_processes(weights.sum()) / count_processes()
        return (cells * weights).sum() / total.clamp(min=MIN_AREA)

    def labelled_weights(self, like: Tensor) -> Tensor:
        """`weights` where a cell has a class and 0 elsewhere, (N, h, w), of the dtype of `like`, (N, ..., h, w)."""
        size = (like.shape[-2], like.shape[-1])
        return (self.weights(size) * (self.classes(size) != IGNORE)).to(like.dtype)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Random numbers in [0, 1), (N, *shape) float32."""
        # Draw for the whole batch and keep this process's part: then an image's numbers do not depend on the number of
        # processes.
        n = len(self.labels)
        numbers = torch.rand((n * count_processes(), *shape), generator=self.draws)
        return send(numbers[process_rank() * n :][:n], self.labels.device)

    def _areas_px(self, cells: Tensor) -> Tensor:
        # In pixels, not cells, so that one count over all processes serves targets of any resolution.
        cell_px = self.labels[0].numel() / cells[0].numel()
        return self.weights((cells.shape[-2], cells.shape[-1])).to(cells.dtype) * cell_px


def send(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers drawn on the host, on `device`. To CUDA by way of pinned memory: from any other the copy would wait."""
    if device.type == "cuda" and torch.cuda.is_available():
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)
