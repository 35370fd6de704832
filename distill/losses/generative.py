"""Generative terms: rebuild the teacher's layer 4 from a masked one of the student (MGD), with a contrast on top (Af-DCD)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.cache.errors import UsageError
from kdcache.distill.losses.masked import max_pool
from kdcache.distill.losses.region import MIN_AREA, Region
from kdcache.distill.losses.terms import Pairs, Term


class MaskedGeneration(Term):
    """Sum over channels and cells of (G(M W f_S) - f_T)^2 of layer 4, mean over images; M hides three cells in four.

    MGD, Yang et al. (arXiv 2205.01529): `FeatureLoss` in github.com/yzd-v/MGD (seg). W is a 1x1 convolution if the
    widths differ; the generator G is two 3x3 convolutions with a ReLU between them. The loss is a sum, so it grows with
    the crop: the authors chose their weight for maps of 64x64 cells. Padded cells are hidden too.
    """

    needs = ("backbone",)
    hidden_share: ClassVar[float] = 0.75

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__(student, teacher, temperature)
        student_width, width = student["backbone"], teacher["backbone"]
        self.align = nn.Identity() if student_width == width else nn.Conv2d(student_width, width, 1)
        self.generator = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, pairs: Pairs, region: Region) -> Tensor | dict[str, Tensor]:
        student, teacher = pairs["backbone"]
        return self._error(self._generate(student, region), teacher, region)

    def _generate(self, student: Tensor, region: Region) -> Tensor:
        """The teacher's map, guessed from the student's map with most cells hidden, (N, D, h, w)."""
        size = (student.shape[-2], student.shape[-1])
        seen = (region.uniform((1, *size)) <= 1 - self.hidden_share) & (region.weights(size)[:, None] > 0)
        generated: Tensor = self.generator(self.align(student) * seen)
        return generated

    def _error(self, generated: Tensor, teacher: Tensor, region: Region) -> Tensor:
        squares = (generated - teacher).square().sum(dim=1)
        return region.mean(squares) * squares[0].numel()  # the published loss is a sum over cells


class OmniContrast(MaskedGeneration):
    """Two losses: "generated", MGD's error (see MaskedGeneration), and "contrast", between groups of channels.

    Af-DCD, Fan et al. (arXiv 2312.04168): `OmniContrastiveFeatureLoss` in github.com/OSVAI/Af-DCD with the defaults of
    its parser. Cut every cell into 16 groups of channels. Within patches of 4x4 cells take InfoNCE with similarity
    -L1 / 0.07: the positive of a generated group is the teacher's group in its place, the negatives are the other
    groups of the patch. Sum over groups, mean over cells. Rows and columns that do not fill a patch are left out.

    That code also clips the gradients of this term at a norm of 15; this one does not.
    """

    needs = ("backbone",)
    groups: ClassVar[int] = 16
    patch: ClassVar[int] = 4
    pool: ClassVar[int] = 4
    pooled_from: ClassVar[int] = 64
    contrast_temperature: ClassVar[float] = 0.07

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__(student, teacher, temperature)
        if teacher["backbone"] % self.groups:
            raise UsageError(
                f"the terms of af-dcd cut the teacher's layer 4 into {self.groups} groups of equal size, and its "
                f"{teacher['backbone']} channels are not a multiple of {self.groups}",
                hint="use another --method, such as mgd",
            )

    def forward(self, pairs: Pairs, region: Region) -> dict[str, Tensor]:
        student, teacher = pairs["backbone"]
        generated = self._generate(student, region)
        return {
            "generated": self._error(generated, teacher, region),
            "contrast": self._contrast(generated, teacher, region),
        }

    def _contrast(self, generated: Tensor, teacher: Tensor, region: Region) -> Tensor:
        size = (teacher.shape[-2], teacher.shape[-1])
        # Large maps are max-pooled by 4, small ones are not: the published code does so for Cityscapes and CamVid.
        pool = self.pool if min(size) >= self.pooled_from else 1
        weights = region.weights(size)
        patches = [max_pool(maps, weights, (pool, pool), ceil_mode=False) for maps in (generated, teacher)]
        student, exact = (self._patch_groups(maps) for maps, _ in patches)
        # The weight of a cell is the weight of each of its groups: expand it as if it were a channel a group.
        part_weights = self._patch_groups(patches[0][1][:, None].expand(-1, self.groups, -1, -1))[..., 0]
        similarity = -torch.cdist(student, exact, p=1) / self.contrast_temperature
        group = torch.arange(similarity.shape[-1], device=similarity.device) % self.groups
        is_positive = torch.eye(len(group), dtype=torch.bool, device=group.device)
        is_negative = (group[:, None] != group) & (part_weights > 0)[..., None, :]
        compared = similarity.masked_fill(~(is_positive | is_negative), torch.finfo(similarity.dtype).min)
        losses = -F.log_softmax(compared, dim=-1).diagonal(dim1=-2, dim2=-1) * part_weights
        sums, cells = (x.reshape(len(teacher), -1).sum(dim=1) for x in (losses, part_weights / self.groups))
        return region.mean_of_images(sums / cells.clamp(min=MIN_AREA), size)

    def _patch_groups(
        self,
        maps: Tensor,  # (N, D, h, w)
    ) -> Tensor:
        """The groups of channels of each patch, (N x patches, cells x groups, D / groups); the group index is the fastest."""
        n, channels, height, width = maps.shape
        down, across = min(self.patch, height), min(self.patch, width)
        maps = maps[:, :, : height // down * down, : width // across * across]
        grid = (height // down, down, width // across, across)
        parts = maps.reshape(n, self.groups, channels // self.groups, *grid)
        return parts.permute(0, 3, 5, 4, 6, 1, 2).reshape(
            -1, down * across * self.groups, channels // self.groups
        )
