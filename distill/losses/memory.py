"""Terms with a memory: CIRKD's queues of the teacher's features of every class in earlier images."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.distill.losses.masked import MaskedBatchNorm
from kdcache.distill.losses.processes import count_processes, gather_images, sum_over_processes
from kdcache.distill.losses.region import MIN_AREA, Region, send
from kdcache.distill.losses.relations import CONTRAST_TEMPERATURE, relation_divergence, unit_cells
from kdcache.distill.losses.terms import LABELS, Pairs, Term


class CrossImageMemory(Term):
    """Mean over labelled cells of KL(softmax(f Q^T / 0.1) of teacher || student), features of unit length.

    CIRKD's memory-based distillation, pixel-to-pixel ("memory_pixel") and pixel-to-region ("memory_region"), Yang et al.
    (arXiv 2204.06986): `StudentSegContrast` in github.com/winycg/CIRKD. Every class has two queues of the teacher's
    features: of single cells, and of regions, CIRKD's word for the mean of a class over an image. Q is a random sample
    of all classes' queues. The student's cells first go through a head that is trained with the student.

    The queues take 4 x classes x 22000 x channels bytes in every process: 0.9 GB for 19 classes and 512 channels.
    """

    needs = ("features", LABELS)
    identical_buffers = ("pixel_queue", "pixel_next", "region_queue", "region_next")
    pixel_slots: ClassVar[int] = 20_000
    """Length of each class's queue of cells."""
    region_slots: ClassVar[int] = 2_000
    """Length of each class's queue of regions."""
    pixel_contrast: ClassVar[int] = 4_096
    """Slots of each class's queue of cells that a step compares with."""
    region_contrast: ClassVar[int] = 1_024
    """The same for regions."""
    pixels_of_image: ClassVar[int] = 16
    """Cells of each class that an image adds to the queue."""

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__(student, teacher, temperature)
        classes, width = student["logits"], teacher["features"]
        self.enter = nn.Conv2d(student["features"], width, 1, bias=False)
        self.norm = MaskedBatchNorm(width)
        self.leave = nn.Conv2d(width, width, 1, bias=False)
        for name, slots in (("pixel", self.pixel_slots), ("region", self.region_slots)):
            # Random directions at first, as published: an empty slot would need a mask in every comparison.
            self.register_buffer(f"{name}_queue", F.normalize(torch.randn(classes, slots, width), dim=2))
            self.register_buffer(f"{name}_next", torch.zeros(classes, dtype=torch.int64))
        self.pixel_queue: Tensor
        self.pixel_next: Tensor
        self.region_queue: Tensor
        self.region_next: Tensor

    def forward(self, pairs: Pairs, region: Region) -> dict[str, Tensor]:
        student, teacher = pairs["features"]
        size = (teacher.shape[-2], teacher.shape[-1])
        self._remember(unit_cells(teacher), region.classes(size), region)
        student = self.leave(F.relu(self.norm(self.enter(student), region.weights(size))))
        cells, teacher_cells = (unit_cells(maps).flatten(0, 1) for maps in (student, teacher))
        weights = region.labelled_weights(student).flatten()
        total = sum_over_processes(weights.sum()).clamp(min=MIN_AREA)
        losses = {}
        for name, queue, count in (
            ("memory_pixel", self.pixel_queue, self.pixel_contrast),
            ("memory_region", self.region_queue, self.region_contrast),
        ):
            # Drawn on the CPU from the region's generator, so that all processes compare with the same slots.
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
            # `loss` is of this process's cells, `total` of all processes; DDP divides by their number again.
            losses[name] = loss * count_processes() / total
        return losses

    @torch.no_grad()
    def _remember(
        self,
        cells: Tensor,  # (N, P, D) the teacher's, of unit length
        labels: Tensor,  # (N, h, w)
        region: Region,
    ) -> None:
        """Add the batch of all processes to the queues, image by image.

        All shapes are independent of the labels, so that nothing has to be read back from the device.
        """
        classes = torch.arange(len(self.pixel_next), device=cells.device)
        is_of_class = labels.flatten(1)[:, None] == classes[:, None]  # (N, C, P)
        counts = is_of_class.sum(dim=2)
        regions = is_of_class.to(cells.dtype) @ cells / counts.clamp(min=1)[..., None]
        noise = region.uniform((cells.shape[1],))[:, None].masked_fill(~self._candidates(is_of_class), -1)
        # The largest of random numbers are a draw without replacement; cells of other classes, at -1, come last.
        drawn = noise.topk(min(self.pixels_of_image, cells.shape[1]), dim=2).indices  # (N, C, U)
        pixels = cells[torch.arange(len(cells), device=cells.device)[:, None, None], drawn]
        for pixel, mean, count in zip(*map(gather_images, (pixels, regions, counts)), strict=True):
            self._put_pixels(F.normalize(pixel, dim=2), count.clamp(max=pixel.shape[1]))
            self._put_region(F.normalize(mean, dim=1), count > 0)

    def _candidates(
        self,
        is_of_class: Tensor,  # (N, C, P) bool: the cell has the class
    ) -> Tensor:
        """The cells that may enter the queue of a class, (N, C, P) bool."""
        return is_of_class

    def _put_pixels(
        self,
        pixels: Tensor,  # (C, U, D)
        counts: Tensor,  # (C,) only the first `counts` of the U pixels of a class are valid
    ) -> None:
        """Write one image's cells into the queues of cells."""
        slots, most = self.pixel_queue.shape[1], pixels.shape[1]
        # At the end of a queue the published code writes the last slots and starts again from 0; it does not wrap.
        is_full = self.pixel_next + counts >= slots
        first = torch.where(is_full, slots - counts, self.pixel_next)
        places = torch.arange(most, device=pixels.device)
        rows = torch.arange(len(pixels), device=pixels.device)[:, None]
        into = (first[:, None] + places) % slots  # invalid pixels write back what is there
        kept = torch.where((places < counts[:, None])[..., None], pixels, self.pixel_queue[rows, into])
        self.pixel_queue[rows, into] = kept
        self.pixel_next.copy_(torch.where(is_full, 0, self.pixel_next + counts))

    def _put_region(
        self,
        means: Tensor,  # (C, D)
        present: Tensor,  # (C,) bool: the image contains the class
    ) -> None:
        """Write one image's class means into the queues of regions."""
        rows = torch.arange(len(means), device=means.device)
        kept = torch.where(present[:, None], means, self.region_queue[rows, self.region_next])
        self.region_queue[rows, self.region_next] = kept
        self.region_next.copy_((self.region_next + present.long()) % self.region_queue.shape[1])


class PublishedCrossImageMemory(CrossImageMemory):
    """CrossImageMemory with the bug of the published code: the queue of a class gets cells of any class.

    `this_feat[:, perm[:K]]` permutes the numbers below the class's count n and uses them as indices of all cells. So the
    queue gets some of the image's first n cells, whatever their class.
    """

    def _candidates(self, is_of_class: Tensor) -> Tensor:
        return torch.arange(is_of_class.shape[2], device=is_of_class.device) < is_of_class.sum(
            dim=2, keepdim=True
        )
