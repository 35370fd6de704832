"""Terms with a memory: CIRKD's queues of what the teacher said of every class in the images before."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.distill.losses.masked import CellNorm
from kdcache.distill.losses.processes import count_processes, gather_images, sum_over_processes
from kdcache.distill.losses.region import LEAST, Region, send
from kdcache.distill.losses.relations import CONTRAST_TEMPERATURE, relation_divergence, unit_cells
from kdcache.distill.losses.terms import LABELS, Pairs, Term


class CrossImageMemory(Term):
    """Mean over labelled cells of KL(softmax(f Q^T / 0.1) of teacher || student), features of unit length.

    CIRKD's memory-based pixel-to-pixel ("memory_pixel") and pixel-to-region distillation ("memory_region"), Yang et
    al. (arXiv 2204.06986): `StudentSegContrast` in github.com/winycg/CIRKD. Q is a sample of a
    queue that holds single cells, or means of a class over an image, of the teacher, for every class; the student's
    cells go through a head of its own first. Queues begin as random directions.

    Every process keeps the same queues: 4 x classes x 22000 x channels bytes, 0.9 GB for 19 classes and 512 channels.
    """

    needs = ("features", LABELS)
    alike = ("pixel_queue", "pixel_next", "region_queue", "region_next")
    pixel_slots: ClassVar[int] = 20_000
    """Of a class; so are all of these."""
    region_slots: ClassVar[int] = 2_000
    pixel_contrast: ClassVar[int] = 4_096
    """Slots that cells are compared with in a step."""
    region_contrast: ClassVar[int] = 1_024
    pixels_of_image: ClassVar[int] = 16
    """Cells that an image puts into the queue."""

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__(student, teacher, temperature)
        classes, width = student["logits"], teacher["features"]
        self.enter = nn.Conv2d(student["features"], width, 1, bias=False)
        self.norm = CellNorm(width)
        self.leave = nn.Conv2d(width, width, 1, bias=False)
        for name, slots in (("pixel", self.pixel_slots), ("region", self.region_slots)):
            self.register_buffer(f"{name}_queue", F.normalize(torch.randn(classes, slots, width), dim=2))
            self.register_buffer(f"{name}_next", torch.zeros(classes, dtype=torch.int64))
        self.pixel_queue: Tensor
        self.pixel_next: Tensor
        self.region_queue: Tensor
        self.region_next: Tensor

    def forward(self, pairs: Pairs, region: Region) -> dict[str, Tensor]:
        own, teacher = pairs["features"]
        size = (teacher.shape[-2], teacher.shape[-1])
        self._remember(unit_cells(teacher), region.classes(size), region)
        own = self.leave(F.relu(self.norm(self.enter(own), region.weights(size))))
        cells, teacher_cells = (unit_cells(maps).flatten(0, 1) for maps in (own, teacher))
        weights = region.labelled_weights(own).flatten()
        total = sum_over_processes(weights.sum()).clamp(min=LEAST)
        losses = {}
        for name, queue, count in (
            ("memory_pixel", self.pixel_queue, self.pixel_contrast),
            ("memory_region", self.region_queue, self.region_contrast),
        ):
            slots = torch.randperm(queue.shape[1], generator=region.draws)[:count]
            keys = queue[:, send(slots, queue.device)].flatten(0, 1)
            loss = relation_divergence(
                cells,
                keys,
                teacher_cells,
                keys,
                weights,
                keys.new_ones(len(keys)),
                CONTRAST_TEMPERATURE,
            )
            losses[name] = loss * count_processes() / total
        return losses

    @torch.no_grad()
    def _remember(
        self,
        cells: Tensor,  # (N, P, D) the teacher's, of unit length
        labels: Tensor,  # (N, h, w)
        region: Region,
    ) -> None:
        """Put the batch of all processes into the queues, image by image, without waiting for the device."""
        classes = torch.arange(len(self.pixel_next), device=cells.device)
        member = labels.flatten(1)[:, None] == classes[:, None]  # (N, C, P)
        counts = member.sum(dim=2)
        regions = member.to(cells.dtype) @ cells / counts.clamp(min=1)[..., None]
        luck = region.uniform((cells.shape[1],))[:, None].masked_fill(~self._candidates(member), -1)
        drawn = luck.topk(min(self.pixels_of_image, cells.shape[1]), dim=2).indices  # (N, C, U)
        pixels = cells[torch.arange(len(cells), device=cells.device)[:, None, None], drawn]
        for pixel, mean, count in zip(*map(gather_images, (pixels, regions, counts)), strict=True):
            self._put_pixels(F.normalize(pixel, dim=2), count.clamp(max=pixel.shape[1]))
            self._put_region(F.normalize(mean, dim=1), count > 0)

    def _candidates(
        self,
        member: Tensor,  # (N, C, P) bool: whether a cell is of a class
    ) -> Tensor:
        """Which cells may stand for a class, (N, C, P)."""
        return member

    def _put_pixels(
        self,
        pixels: Tensor,  # (C, U, D)
        counts: Tensor,  # (C,) how many of them, from the first, there are
    ) -> None:
        slots, most = self.pixel_queue.shape[1], pixels.shape[1]
        is_full = self.pixel_next + counts >= slots
        first = torch.where(is_full, slots - counts, self.pixel_next)
        places = torch.arange(most, device=pixels.device)
        rows = torch.arange(len(pixels), device=pixels.device)[:, None]
        into = (first[:, None] + places) % slots
        kept = torch.where((places < counts[:, None])[..., None], pixels, self.pixel_queue[rows, into])
        self.pixel_queue[rows, into] = kept
        self.pixel_next.copy_(torch.where(is_full, 0, self.pixel_next + counts))

    def _put_region(
        self,
        means: Tensor,  # (C, D)
        present: Tensor,  # (C,) bool
    ) -> None:
        rows = torch.arange(len(means), device=means.device)
        kept = torch.where(present[:, None], means, self.region_queue[rows, self.region_next])
        self.region_queue[rows, self.region_next] = kept
        self.region_next.copy_((self.region_next + present.long()) % self.region_queue.shape[1])


class PublishedCrossImageMemory(CrossImageMemory):
    """CrossImageMemory as it was published: the cells of a class are any cells.

    `this_feat[:, perm[:K]]` permutes the numbers below the class's count and takes them for cells of the map, so the
    pixel queue of a class with n cells in an image gets some of the image's first n cells, whatever they show.
    """

    def _candidates(self, member: Tensor) -> Tensor:
        return torch.arange(member.shape[2], device=member.device) < member.sum(dim=2, keepdim=True)
