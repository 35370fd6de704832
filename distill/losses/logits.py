"""Terms on logits: softmax over cells (CWD), correlations (DIST), label and other classes apart (DKD)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.distill.losses.masked import log_softmax_over_cells
from kdcache.distill.losses.processes import sum_over_processes
from kdcache.distill.losses.region import MIN_AREA, Region
from kdcache.distill.losses.terms import LABELS, Pairs, Term, kl_divergence


class ChannelKL(Term):
    """T^2 / C sum over classes of KL(phi(z_T) || phi(z_S)), phi = softmax over the cells of z / T; mean over images.

    CWD, Shu et al. (arXiv 2011.13256), on logits: `CriterionCWD` in
    github.com/irfanICMLL/TorchDistiller with norm_type "channel" and divergence "kl".
    """

    needs = ("logits",)
    temperature = 4.0

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        return self._divergence(*pairs["logits"], region)

    def _divergence(self, student: Tensor, teacher: Tensor, region: Region) -> Tensor:
        assert self.temperature is not None
        size = (teacher.shape[-2], teacher.shape[-1])
        weights, temperature = region.weights(size), self.temperature
        log_student, log_teacher = (
            log_softmax_over_cells(m / temperature, weights) for m in (student, teacher)
        )
        by_image = kl_divergence(log_student, log_teacher, dim=2).mean(dim=1)
        return temperature**2 * region.mean_of_images(by_image, size)


class FeatureChannelKL(ChannelKL):
    """CWD (see ChannelKL) on the features after the bottleneck, through a 1x1 convolution if the widths differ.

    As `CriterionCWD` in github.com/winycg/CIRKD, except that the mean is over the teacher's channels, as in the paper;
    that code divides by the student's number of channels.
    """

    needs = ("features",)

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__(student, teacher, temperature)
        widths = (student["features"], teacher["features"])
        self.projector = nn.Identity() if widths[0] == widths[1] else nn.Conv2d(*widths, 1, bias=False)

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        student, teacher = pairs["features"]
        return self._divergence(self.projector(student), teacher, region)


class Correlation(Term):
    """beta (1 - mean over cells of rho) + gamma (1 - mean over classes of rho), rho = Pearson's correlation.

    DIST, Huang et al. (arXiv 2205.10536), of softmax(z): between classes at every cell, and between all cells of the
    batch for every class. beta = gamma = 1, as `DIST` in github.com/hunto/DIST_KD.
    """

    needs = ("logits",)
    target: ClassVar[str] = "logits"

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        student, teacher = (logits.softmax(dim=1) for logits in pairs[self.target])
        between = _pearson(*(p - p.mean(dim=1, keepdim=True) for p in (student, teacher)))
        within = self._within_classes(student, teacher, region)
        return region.mean(1 - between) + 1 - within.mean()

    def _within_classes(self, student: Tensor, teacher: Tensor, region: Region) -> Tensor:
        """Correlation of every class over the batch of all processes, (C,)."""
        area = region.weights((student.shape[-2], student.shape[-1]))[:, None].to(student.dtype)
        tiny = torch.finfo(student.dtype).tiny
        both = torch.stack([student, teacher])
        cells = sum_over_processes(area.sum()).clamp(min=MIN_AREA)
        means = sum_over_processes((both * area).sum(dim=(1, 3, 4))) / cells
        centred = both - means[:, None, :, None, None]
        products = torch.stack([centred[0] * centred[1], *centred.square()])
        moments = sum_over_processes((products * area).sum(dim=(1, 3, 4)))
        # sqrt has an infinite gradient at 0, where a class is constant over the batch.
        norms = moments[1:].clamp(min=tiny).sqrt()
        correlation: Tensor = moments[0] / (norms.prod(dim=0) + _EPSILON)
        return correlation


class AuxiliaryCorrelation(Correlation):
    """DIST (see Correlation) between the auxiliary heads, as in its train_kd.py."""

    needs = ("aux",)
    target = "aux"


class DecoupledKL(Term):
    """Two losses: "dkd_target", T^2 KL of (p_y, 1 - p_y), and "dkd_nontarget", T^2 KL of the softmax over the other classes.

    DKD, Zhao et al. (arXiv 2203.08679): alpha TCKD + beta NCKD, `dkd_loss` in github.com/megvii-research/mdistiller,
    per cell with label y. Cells without a label do not count.
    """

    needs = ("logits", LABELS)
    temperature = 4.0

    def forward(self, pairs: Pairs, region: Region) -> dict[str, Tensor]:
        assert self.temperature is not None
        scaled = [logits / self.temperature for logits in pairs["logits"]]
        labels = region.classes((scaled[0].shape[-2], scaled[0].shape[-1]))
        classes = torch.arange(scaled[0].shape[1], device=labels.device)
        is_label = labels[:, None] == classes[:, None, None]
        student, teacher = (_decoupled(logits, is_label) for logits in scaled)
        return {
            name: self.temperature**2
            * region.labelled_mean(kl_divergence(student[part], teacher[part], dim=1))
            for part, name in enumerate(("dkd_target", "dkd_nontarget"))
        }


_EPSILON = 1e-8  # DIST's


def _pearson(student: Tensor, teacher: Tensor) -> Tensor:
    """Pearson's correlation along channels of two (N, C, h, w) maps whose channels have mean 0, (N, h, w)."""
    norms: list[Tensor] = [torch.linalg.vector_norm(p, dim=1) for p in (student, teacher)]
    return (student * teacher).sum(dim=1) / (norms[0] * norms[1] + _EPSILON)


def _decoupled(
    logits: Tensor,  # (N, C, h, w)
    is_label: Tensor,  # (N, C, h, w) bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the label and of all other classes together, (N, 2, h, w); and among the others, (N, C, h, w)."""
    lowest = torch.finfo(logits.dtype).min
    others = logits.masked_fill(is_label, lowest)
    either = torch.stack(
        [logits.masked_fill(~is_label, lowest).logsumexp(dim=1), others.logsumexp(dim=1)], dim=1
    )
    return F.log_softmax(either, dim=1), F.log_softmax(others, dim=1)
