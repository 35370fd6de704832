"""Attention terms: attention maps (AT), and differences of maps and similarities of classes (DSD)."""

from itertools import combinations

import torch
from torch import Tensor

from kdcache.distill.losses.masked import average_pool, log_softmax_over_cells, normalise_maps
from kdcache.distill.losses.region import Region
from kdcache.distill.losses.terms import Pairs, Term


class AttentionTransfer(Term):
    """Mean over cells of (A_S - A_T)^2, A = vec(mean over channels of f^2) over its L2 norm, of the features.

    AT, Zagoruyko and Komodakis (arXiv 1612.03928) with p = 2. The paper has a norm in place of the mean; its code and
    `CriterionAT` in github.com/winycg/CIRKD have the mean. Student and teacher may differ in channels.
    """

    needs = ("features",)

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        student, teacher = (attention(maps, region) for maps in pairs["features"])
        return region.mean((student - teacher).square())


class PixelSimilarity(Term):
    """Mean over pairs of layers and cells of (R_S - R_T)^2, R = (A_m - A_n) over its L2 norm, A as AttentionTransfer's.

    DSD's pixel-wise similarity distillation, Feng et al. (arXiv 2107.08591), of auxiliary logits, features and logits:
    `CriterionPSD` in github.com/winycg/CIRKD.
    """

    needs = ("aux", "features", "logits")

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        layers = (pairs[target] for target in self.needs)
        student, teacher = zip(
            *((attention(s, region), attention(t, region)) for s, t in layers), strict=True
        )
        residuals = zip(_residuals(student, region), _residuals(teacher, region), strict=True)
        return torch.stack([region.mean((s - t).square()) for s, t in residuals]).mean()


class CategorySimilarity(Term):
    """Mean over pairs of classes of (P_S P_S^T - P_T P_T^T)^2, P = softmax over cells of z / T after a 2x2 mean pool.

    DSD's category-wise similarity distillation (see PixelSimilarity): `CriterionCSD` in github.com/winycg/CIRKD.
    """

    needs = ("logits",)
    temperature = 4.0

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        student, teacher = pairs["logits"]
        size = (teacher.shape[-2], teacher.shape[-1])
        weights = region.weights(size)
        student, teacher = (self._similarities(logits, weights) for logits in (student, teacher))
        return region.mean_of_images((student - teacher).square().mean(dim=(1, 2)), size)

    def _similarities(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Similarities of all pairs of classes, (N, C, C), by where in the image they are."""
        assert self.temperature is not None
        pooled, areas = average_pool(logits, weights, (2, 2))
        spread = log_softmax_over_cells(
            pooled / self.temperature, areas
        ).exp()  # of each class over the cells
        return spread @ spread.mT


def attention(
    maps: Tensor,  # (N, D, h, w)
    region: Region,
) -> Tensor:
    """The attention map of AT: mean square over channels, divided by the L2 norm of the map, (N, h, w)."""
    energy = maps.square().mean(dim=1)
    return normalise_maps(energy, region.weights((maps.shape[-2], maps.shape[-1])))


def _residuals(maps: tuple[Tensor, ...], region: Region) -> list[Tensor]:
    """Differences of all pairs of (N, h, w) maps, each divided by its L2 norm."""
    weights = region.weights((maps[0].shape[-2], maps[0].shape[-1]))
    return [normalise_maps(second - first, weights) for first, second in combinations(maps, 2)]
