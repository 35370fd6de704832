"""Terms of distributions made of logits or features: over cells (CWD), of correlations (DIST), split by class (DKD)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.distill.losses.masked import log_softmax_over_cells
from kdcache.distill.losses.processes import sum_over_processes
from kdcache.distill.losses.region import LEAST, Region
from kdcache.distill.losses.terms import LABELS, Pairs, Term, divergence


class ChannelKL(Term):
    """T^2 / C sum over classes of KL(phi(z_T) || phi(z_S)), phi = softmax over the cells of z / T; mean over images.

    CWD, Shu et al. (arXiv 2011.13256), on logits: `CriterionCWD` in
    github.com/irfanICMLL/TorchDistiller with norm_type "channel" and divergence "kl".
    """

    needs = ("logits",)
    temperature = 4.0

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        return self._divergence(*pairs["logits"], region)

    def _divergence(self, own: Tensor, teacher: Tensor, region: Region) -> Tensor:
        assert self.temperature is not None
        size = (teacher.shape[-2], teacher.shape[-1])
        weights, temperature = region.weights(size), self.temperature
        log_own, log_teacher = (log_softmax_over_cells(m / temperature, weights) for m in (own, teacher))
        by_image = divergence(log_own, log_teacher, dim=2).mean(dim=1)
        return temperature**2 * region.mean_of_images(by_image, size)


class FeatureChannelKL(ChannelKL):
    """CWD (see ChannelKL) on the features after the bottleneck, through a 1x1 convolution where widths differ.

    As `CriterionCWD` in github.com/winycg/CIRKD; but the mean is over the teacher's channels, as in the paper, where
    that code divides by the student's count.
    """

    needs = ("features",)

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__(student, teacher, temperature)
        widths = (student["features"], teacher["features"])
        self.projector = nn.Identity() if widths[0] == widths[1] else nn.Conv2d(*widths, 1, bias=False)

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        own, teacher = pairs["features"]
        return self._divergence(self.projector(own), teacher, region)


class Correlation(Term):
    """beta (1 - mean over cells of rho) + gamma (1 - mean over classes of rho), rho = Pearson's correlation.

    DIST, Huang et al. (arXiv 2205.10536), of softmax(z): along classes for every cell, and along
    all cells of the batch for every class. beta = gamma = 1, as `DIST` in github.com/hunto/DIST_KD.
    """

    needs = ("logits",)
    target: ClassVar[str] = "logits"

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        own, teacher = (logits.softmax(dim=1) for logits in pairs[self.target])
        between = _pearson(*(p - p.mean(dim=1, keepdim=True) for p in (own, teacher)))
        within = self._within_classes(own, teacher, region)
        return region.mean(1 - between) + 1 - within.mean()

    def _within_classes(self, own: Tensor, teacher: Tensor, region: Region) -> Tensor:
        """Correlation of every class over the batch of all processes, (C,)."""
        area = region.weights((own.shape[-2], own.shape[-1]))[:, None].to(own.dtype)
        tiny = torch.finfo(own.dtype).tiny
        both = torch.stack([own, teacher])
        cells = sum_over_processes(area.sum()).clamp(min=LEAST)
        means = sum_over_processes((both * area).sum(dim=(1, 3, 4))) / cells
        centred = both - means[:, None, :, None, None]
        products = torch.stack([centred[0] * centred[1], *centred.square()])
        moments = sum_over_processes((products * area).sum(dim=(1, 3, 4)))
        norms = moments[1:].clamp(min=tiny).sqrt()
        correlation: Tensor = moments[0] / (norms.prod(dim=0) + _EPSILON)
        return correlation


class AuxiliaryCorrelation(Correlation):
    """DIST (see Correlation) between the auxiliary heads, as its train_kd.py has it."""

    needs = ("aux",)
    target = "aux"


class DecoupledKL(Term):
    """T^2 KL of (p_y, 1 - p_y), "dkd_target", and T^2 KL of the softmax over all classes but y, "dkd_nontarget".

    DKD, Zhao et al. (arXiv 2203.08679): alpha TCKD + beta NCKD, `dkd_loss` in
    github.com/megvii-research/mdistiller, per cell and with its label y; cells without a label take no part.
    """

    needs = ("logits", LABELS)
    temperature = 4.0

    def forward(self, pairs: Pairs, region: Region) -> dict[str, Tensor]:
        assert self.temperature is not None
        own, teacher = (logits / self.temperature for logits in pairs["logits"])
        classes = own.shape[1]
        labels = region.classes((own.shape[-2], own.shape[-1]))
        is_label = labels[:, None] == torch.arange(classes, device=labels.device)[:, None, None]
        student, exact = (_decoupled(logits, is_label) for logits in (own, teacher))
        return {
            name: self.temperature**2 * region.labelled_mean(divergence(student[part], exact[part], dim=1))
            for part, name in enumerate(("dkd_target", "dkd_nontarget"))
        }


_EPSILON = 1e-8  # DIST's


def _pearson(own: Tensor, teacher: Tensor) -> Tensor:
    """Cosine of centred (N, C, h, w) maps along their channels, (N, h, w)."""
    norms: list[Tensor] = [torch.linalg.vector_norm(p, dim=1) for p in (own, teacher)]
    return (own * teacher).sum(dim=1) / (norms[0] * norms[1] + _EPSILON)


def _decoupled(
    logits: Tensor,  # (N, C, h, w)
    is_label: Tensor,  # (N, C, h, w) bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the label and of all others together, (N, 2, h, w), and of each among the others."""
    lowest = torch.finfo(logits.dtype).min
    others = logits.masked_fill(is_label, lowest)
    either = torch.stack(
        [logits.masked_fill(~is_label, lowest).logsumexp(dim=1), others.logsumexp(dim=1)], dim=1
    )
    return F.log_softmax(either, dim=1), F.log_softmax(others, dim=1)
