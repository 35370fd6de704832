"""Terms of where activation lies: attention maps (AT), their differences and similarities of classes (DSD)."""

from itertools import combinations

import torch
from torch import Tensor

from kdcache.distill.losses.masked import average_pool, log_softmax_over_cells, normalise_maps
from kdcache.distill.losses.region import Region
from kdcache.distill.losses.terms import Pairs, Term


class AttentionTransfer(Term):
    """Mean over cells of (A_S - A_T)^2, A = vec(mean over channels of f^2) over its L2 norm, of the features.

    AT, Zagoruyko and Komodakis (arXiv 1612.03928) with p = 2; a mean where the paper has a norm, as in its
    own code and `CriterionAT` in github.com/winycg/CIRKD. Widths need not agree.
    """

    needs = ("features",)

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        own, teacher = (attention(maps, region) for maps in pairs["features"])
        return region.mean((own - teacher).square())


class PixelSimilarity(Term):
    """Mean over pairs of layers and cells of (R_S - R_T)^2, R = (A_m - A_n) over its L2 norm, A as AttentionTransfer's.

    DSD's pixel-wise similarity distillation, Feng et al. (arXiv 2107.08591), of auxiliary logits, features and logits:
    `CriterionPSD` in github.com/winycg/CIRKD.
    """

    needs = ("aux", "features", "logits")

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        layers = (pairs[target] for target in self.needs)
        own, teacher = zip(*((attention(s, region), attention(t, region)) for s, t in layers), strict=True)
        residuals = zip(_residuals(own, region), _residuals(teacher, region), strict=True)
        return torch.stack([region.mean((s - t).square()) for s, t in residuals]).mean()


class CategorySimilarity(Term):
    """Mean over pairs of classes of (P_S P_S^T - P_T P_T^T)^2, P = softmax over cells of z / T after a 2x2 mean pool.

    DSD's category-wise similarity distillation (see PixelSimilarity): `CriterionCSD` in github.com/winycg/CIRKD.
    """

    needs = ("logits",)
    temperature = 4.0

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        own, teacher = pairs["logits"]
        size = (teacher.shape[-2], teacher.shape[-1])
        weights = region.weights(size)
        own, teacher = (self._similarities(logits, weights) for logits in (own, teacher))
        return region.mean_of_images((own - teacher).square().mean(dim=(1, 2)), size)

    def _similarities(self, logits: Tensor, weights: Tensor) -> Tensor:
        """(N, C, C)."""
        assert self.temperature is not None
        pooled, areas = average_pool(logits, weights, (2, 2))
        places = log_softmax_over_cells(pooled / self.temperature, areas).exp()
        return places @ places.mT


def attention(
    maps: Tensor,  # (N, D, h, w)
    region: Region,
) -> Tensor:
    """Where activation lies: the mean square over channels, over the L2 norm of the map, (N, h, w)."""
    energy = maps.square().mean(dim=1)
    return normalise_maps(energy, region.weights((maps.shape[-2], maps.shape[-1])))


def _residuals(maps: tuple[Tensor, ...], region: Region) -> list[Tensor]:
    """Differences of all pairs of (N, h, w) maps, each over its L2 norm."""
    weights = region.weights((maps[0].shape[-2], maps[0].shape[-1]))
    return [normalise_maps(second - first, weights) for first, second in combinations(maps, 2)]
