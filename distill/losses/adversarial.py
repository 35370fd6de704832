"""Terms with a rival: SKD's holistic distillation, whose discriminator tells the student from the teacher."""

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kdcache.distill.losses.masked import CellNorm
from kdcache.distill.losses.region import Region
from kdcache.distill.losses.terms import Pairs, Term

LEAST_CELLS = 64  # a side: what four halvings and a 4x4 window take


class Holistic(Term):
    """-mean D(z_S), and for D itself, "discriminator", mean D(z_S) - mean D(z_T) + 10 mean (|grad D| - 1)^2.

    SKD's holistic distillation, Liu et al. (arXiv 1903.04197), with the gradient penalty of WGAN-GP (arXiv 1704.00028)
    at random mixtures of both: `CriterionAdv`, `CriterionAdvForG`, `CriterionAdditionalGP` and `Discriminator` in
    github.com/YukangWang/IFVD. Both losses are taken in one pass: the student's through a copy of the discriminator
    that learns nothing, the discriminator's on logits cut off from the student.
    """

    needs = ("logits",)
    adversaries = ("discriminator",)
    rival_weight: ClassVar[float] = 0.1
    penalty: ClassVar[float] = 10.0
    learning_rate: ClassVar[float] = 4e-4

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__(student, teacher, temperature)
        self.discriminator = Discriminator(teacher["logits"])

    def forward(self, pairs: Pairs, region: Region) -> dict[str, Tensor]:
        own, teacher = pairs["logits"]
        size = (teacher.shape[-2], teacher.shape[-1])
        weights = region.weights(size).to(own.dtype)
        fixed = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        of_student = functional_call(self.discriminator, fixed, (own, weights))
        own = own.detach()
        scores = self.discriminator(own, weights) - self.discriminator(teacher, weights)
        slopes = self._slopes(own, teacher, weights, region)
        rival = region.mean_of_images(scores + self.penalty * (slopes - 1).square(), size)
        return {
            "holistic": -region.mean_of_images(of_student, size),
            "discriminator": self.rival_weight * rival,
        }

    def own_optimiser(self) -> torch.optim.Optimizer:
        """IFVD's."""
        return torch.optim.Adam(self.discriminator.parameters(), lr=self.learning_rate, betas=(0.9, 0.99))

    def _slopes(self, own: Tensor, teacher: Tensor, weights: Tensor, region: Region) -> Tensor:
        """Norm of the score's gradient at logits between the student's and the teacher's, by image, (N,)."""
        share = region.uniform((1, 1, 1)).to(own.dtype)
        between = (share * teacher + (1 - share) * own).requires_grad_()
        score = self.discriminator.scores(between, weights).sum()
        (slope,) = torch.autograd.grad(score, between, create_graph=True)
        norms: Tensor = torch.linalg.vector_norm(slope.flatten(1), dim=1)
        return norms


class HolisticBySGD(Holistic):
    """Holistic, the discriminator trained as in SKD's own code."""

    def own_optimiser(self) -> torch.optim.Optimizer:
        parameters = self.discriminator.parameters()
        return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=0.9, weight_decay=5e-4)


class Discriminator(nn.Module):
    """A score of (N, C, h, w) logits: BatchNorm, four halvings, attention after the last two, and a 4x4 window.

    SAGAN's discriminator (arXiv 1805.08318) as SKD has it. It takes maps of 64 cells and more a side; smaller ones are
    enlarged to that.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = CellNorm(channels)
        widths = (channels, 64, 128, 256, 512)
        self.halvings = nn.ModuleList(SpectralConv(*pair) for pair in pairwise(widths))
        self.attentions = nn.ModuleList(SelfAttention(width) for width in widths[3:])
        self.last = nn.Conv2d(widths[-1], 1, 4)

    def forward(
        self,
        logits: Tensor,  # (N, C, h, w)
        weights: Tensor,  # (N, h, w)
    ) -> Tensor:
        """The mean score of every image, (N,)."""
        return self.scores(logits, weights).mean(dim=(1, 2, 3))

    def scores(self, logits: Tensor, weights: Tensor) -> Tensor:
        """(N, 1, i, j)."""
        maps = self.norm(logits, weights) * weights[:, None]
        if (shorter := min(maps.shape[-2:])) < LEAST_CELLS:
            size = [-(-side * LEAST_CELLS // shorter) for side in maps.shape[-2:]]
            maps = F.interpolate(maps, size=size, mode="bilinear")
        for place, halving in enumerate(self.halvings):
            maps = F.leaky_relu(halving(maps), 0.1)
            if place >= 2:
                maps = self.attentions[place - 2](maps)
        scores: Tensor = self.last(maps)
        return scores


class SpectralConv(nn.Module):
    """A 4x4 convolution of stride 2 whose weight is divided by its largest singular value (arXiv 1802.05957).

    The value follows the weight by one power iteration a call, as in SKD's code. That code swaps the vectors under the
    graph, so that all calls before a backward pass get the last one's gradient; here each has its own.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        like = nn.Conv2d(channels, width, 4)
        assert like.bias is not None
        self.weight, self.bias = like.weight, like.bias
        self.register_buffer("u", F.normalize(torch.randn(width), dim=0))
        self.u: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(matrix.T @ self.u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
            self.u.copy_(u)
        return F.conv2d(maps, self.weight / (u @ matrix @ v), self.bias, stride=2, padding=1)


class SelfAttention(nn.Module):
    """x + gamma A(x): every cell's mixture of all cells by dot products, with gamma from 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Conv2d(channels, channels // 8, 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Tensor) -> Tensor:
        query, key, value = (layer(maps).flatten(2) for layer in (self.query, self.key, self.value))
        shares = (query.mT @ key).softmax(dim=-1)
        mixed: Tensor = (value @ shares.mT).reshape(maps.shape)
        return self.gamma * mixed + maps
