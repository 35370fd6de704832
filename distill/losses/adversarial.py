"""Adversarial terms: SKD's holistic distillation, with a discriminator between student and teacher."""

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kdcache.distill.losses.masked import MaskedBatchNorm
from kdcache.distill.losses.region import Region
from kdcache.distill.losses.terms import Pairs, Term

MIN_SIDE = 64  # cells: four halvings leave 4, which the last 4x4 window needs


class Holistic(Term):
    """Two losses: "holistic", -mean D(z_S), and "discriminator", mean D(z_S) - mean D(z_T) + 10 mean (|grad D| - 1)^2.

    SKD's holistic distillation, Liu et al. (arXiv 1903.04197), with the gradient penalty of WGAN-GP (arXiv 1704.00028)
    at random mixtures of student's and teacher's logits: `CriterionAdv`, `CriterionAdvForG`, `CriterionAdditionalGP`
    and `Discriminator` in github.com/YukangWang/IFVD.
    """

    needs = ("logits",)
    adversaries = ("discriminator",)
    discriminator_weight: ClassVar[float] = 0.1
    penalty: ClassVar[float] = 10.0
    learning_rate: ClassVar[float] = 4e-4

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__(student, teacher, temperature)
        self.discriminator = Discriminator(teacher["logits"])

    def forward(self, pairs: Pairs, region: Region) -> dict[str, Tensor]:
        student, teacher = pairs["logits"]
        size = (teacher.shape[-2], teacher.shape[-1])
        weights = region.weights(size).to(student.dtype)
        # One backward pass serves both losses: this one trains the student and leaves the discriminator alone,
        fixed = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        student_scores = functional_call(self.discriminator, fixed, (student, weights))
        # and from here on everything trains the discriminator and leaves the student alone.
        student = student.detach()
        scores = self.discriminator(student, weights) - self.discriminator(teacher, weights)
        gradient_norms = self._gradient_norms(student, teacher, weights, region)
        discriminator_loss = region.mean_of_images(
            scores + self.penalty * (gradient_norms - 1).square(), size
        )
        return {
            "holistic": -region.mean_of_images(student_scores, size),
            "discriminator": self.discriminator_weight * discriminator_loss,
        }

    def make_adversary_optimiser(self) -> torch.optim.Optimizer:
        """Adam with IFVD's settings."""
        return torch.optim.Adam(self.discriminator.parameters(), lr=self.learning_rate, betas=(0.9, 0.99))

    def _gradient_norms(self, student: Tensor, teacher: Tensor, weights: Tensor, region: Region) -> Tensor:
        """L2 norm of the score's gradient at a random mixture of student's and teacher's logits, (N,)."""
        share = region.uniform((1, 1, 1)).to(student.dtype)
        between = (share * teacher + (1 - share) * student).requires_grad_()
        score = self.discriminator.scores(between, weights).sum()
        # create_graph: the penalty is a function of this gradient and needs a gradient of its own.
        (gradient,) = torch.autograd.grad(score, between, create_graph=True)
        norms: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return norms


class HolisticBySGD(Holistic):
    """Holistic, with the discriminator trained by SGD as in SKD's code."""

    def make_adversary_optimiser(self) -> torch.optim.Optimizer:
        parameters = self.discriminator.parameters()
        return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=0.9, weight_decay=5e-4)


class Discriminator(nn.Module):
    """A score of (N, C, h, w) logits: BatchNorm, four convolutions of stride 2, attention after the last two, a 4x4 window.

    SAGAN's discriminator (arXiv 1805.08318) in SKD's version. Maps with a side below 64 cells are enlarged first.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = MaskedBatchNorm(channels)
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
        """Scores of overlapping parts of the map, (N, 1, i, j)."""
        maps = self.norm(logits, weights) * weights[:, None]
        if (shorter := min(maps.shape[-2:])) < MIN_SIDE:
            size = [-(-side * MIN_SIDE // shorter) for side in maps.shape[-2:]]
            maps = F.interpolate(maps, size=size, mode="bilinear")
        for place, halving in enumerate(self.halvings):
            maps = F.leaky_relu(halving(maps), 0.1)
            if place >= 2:
                maps = self.attentions[place - 2](maps)
        scores: Tensor = self.last(maps)
        return scores


class SpectralConv(nn.Module):
    """A 4x4 convolution of stride 2 whose weight is divided by its largest singular value (arXiv 1802.05957).

    One power iteration a call keeps track of the singular value, as in SKD's code.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, width, 4)  # for torch's initialisation only
        assert conv.bias is not None
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("u", F.normalize(torch.randn(width), dim=0))
        self.u: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(matrix.T @ self.u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
            self.u.copy_(u)
        # The graph uses the local u and v, not the buffer. SKD's code uses the buffers: several calls before a backward
        # pass then all get the gradient of the last one.
        return F.conv2d(maps, self.weight / (u @ matrix @ v), self.bias, stride=2, padding=1)


class SelfAttention(nn.Module):
    """x + gamma A(x), where A mixes all cells by dot-product attention. gamma is learnt and starts at 0."""

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
