"""Terms that have the teacher's layer 4 rebuilt from a masked one of the student: MGD, and Af-DCD's contrast on top."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.cache.errors import UsageError
from kdcache.distill.losses.masked import max_pool
from kdcache.distill.losses.region import LEAST, Region
from kdcache.distill.losses.terms import Pairs, Term


class MaskedGeneration(Term):
    """Sum over channels and cells of (G(M W f_S) - f_T)^2 of layer 4, mean over images; M hides three cells in four.

    MGD, Yang et al. (arXiv 2205.01529): `FeatureLoss` in github.com/yzd-v/MGD (seg). W is a 1x1
    convolution where widths differ; the generator G two 3x3 convolutions with a ReLU between. The sum grows with the
    crop: the authors' weight is for maps of 64x64 cells. Padded cells are hidden too.
    """

    needs = ("backbone",)
    hidden_share: ClassVar[float] = 0.75

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__(student, teacher, temperature)
        own, width = student["backbone"], teacher["backbone"]
        self.align = nn.Identity() if own == width else nn.Conv2d(own, width, 1)
        self.generator = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, pairs: Pairs, region: Region) -> Tensor | dict[str, Tensor]:
        own, teacher = pairs["backbone"]
        return self._error(self._generate(own, region), teacher, region)

    def _generate(self, own: Tensor, region: Region) -> Tensor:
        """The teacher's map as the student's, with cells hidden, lets guess it."""
        size = (own.shape[-2], own.shape[-1])
        seen = (region.uniform((1, *size)) <= 1 - self.hidden_share) & (region.weights(size)[:, None] > 0)
        generated: Tensor = self.generator(self.align(own) * seen)
        return generated

    def _error(self, generated: Tensor, teacher: Tensor, region: Region) -> Tensor:
        squares = (generated - teacher).square().sum(dim=1)
        return region.mean(squares) * squares[0].numel()


class OmniContrast(MaskedGeneration):
    """MGD's error (see MaskedGeneration), "generated", and a contrast between parts of cells, "contrast".

    Af-DCD, Fan et al. (arXiv 2312.04168): `OmniContrastiveFeatureLoss` in github.com/OSVAI/Af-DCD, as its parser's
    defaults have it. In patches of 4x4 cells every cell is cut into 16 groups of channels; InfoNCE with -L1 / 0.07 for
    similarity, where the generated group's counterpart of the teacher is positive and other groups of the patch are
    negative; sum over groups, mean over cells.

    Maps of 64 cells and more a side are max-pooled by 4 first; smaller ones, as that code has it for CamVid, are not.
    What a patch does not fill is left out. The clipping of this term's gradients at a norm of 15 is not taken over.
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
                f"Af-DCD cuts the teacher's layer 4 into {self.groups} groups of channels; it has "
                f"{teacher['backbone']}"
            )

    def forward(self, pairs: Pairs, region: Region) -> dict[str, Tensor]:
        own, teacher = pairs["backbone"]
        generated = self._generate(own, region)
        return {
            "generated": self._error(generated, teacher, region),
            "contrast": self._contrast(generated, teacher, region),
        }

    def _contrast(self, generated: Tensor, teacher: Tensor, region: Region) -> Tensor:
        size = (teacher.shape[-2], teacher.shape[-1])
        pool = self.pool if min(size) >= self.pooled_from else 1
        weights = region.weights(size)
        patches = [max_pool(maps, weights, (pool, pool), ceil_mode=False) for maps in (generated, teacher)]
        own, other = (self._parts(maps) for maps, _ in patches)
        of_part = self._parts(patches[0][1][:, None].expand(-1, self.groups, -1, -1))[..., 0]
        similarity = -torch.cdist(own, other, p=1) / self.contrast_temperature
        group = torch.arange(similarity.shape[-1], device=similarity.device) % self.groups
        is_positive = torch.eye(len(group), dtype=torch.bool, device=group.device)
        is_negative = (group[:, None] != group) & (of_part > 0)[..., None, :]
        compared = similarity.masked_fill(~(is_positive | is_negative), torch.finfo(similarity.dtype).min)
        losses = -F.log_softmax(compared, dim=-1).diagonal(dim1=-2, dim2=-1) * of_part
        sums, cells = (x.reshape(len(teacher), -1).sum(dim=1) for x in (losses, of_part / self.groups))
        return region.mean_of_images(sums / cells.clamp(min=LEAST), size)

    def _parts(
        self,
        maps: Tensor,  # (N, D, h, w)
    ) -> Tensor:
        """Groups of channels of cells, by patch: (N patches, cells x groups, D / groups), groups fastest."""
        n, channels, height, width = maps.shape
        down, across = min(self.patch, height), min(self.patch, width)
        maps = maps[:, :, : height // down * down, : width // across * across]
        grid = (height // down, down, width // across, across)
        parts = maps.reshape(n, self.groups, channels // self.groups, *grid)
        return parts.permute(0, 3, 5, 4, 6, 1, 2).reshape(
            -1, down * across * self.groups, channels // self.groups
        )
