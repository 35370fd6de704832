"""Distillation methods: what the student's loss is made of.

A method is one class and one line in METHODS. It states the teacher targets that it needs, so that a store that lacks
one is refused before the first batch, and returns named terms, already weighted, whose sum is the loss.

Three rules hold for every term:

* All arithmetic is in float32 at least, under autocast too: a KL divergence in bfloat16 loses what the codec kept.
* Distillation happens at the teacher's resolution (stride 8), as in CIRKD; a student map of another size is resampled
  to it bilinearly. Cross-entropy is taken at the crop's resolution.
* Sums are divided by a count of pixels over all processes (`Totals`), never by a count of this process alone. Padding
  and void are spread unevenly over processes, and a mean of means would weigh a pixel by the company it keeps.

Padding takes no part in any term. Void pixels take part in distillation, where the teacher has an opinion, unless
`kd_ignore="void"`; cross-entropy ignores them always.

Left out on purpose: masking by the teacher's correctness, warm-up of the weights. Neither is in the sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.cache.classes import IGNORE
from kdcache.cache.errors import UsageError
from kdcache.cache.maps import cell_weights, labelled_cell_weights, resample, working_precision
from kdcache.cache.networks import NetworkConfig, NetworkOutput
from kdcache.distill.config import KD_IGNORES


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights and temperature of the terms.

    `logit_weight` and `temperature` are CIRKD's (lambda 1, T 1; arXiv 2204.06986). `feature_weight` is the "robust
    starting point" beta = 6 that a digest of arXiv 2604.25530 reports; the same digest gives T in [1, 4]. The paper's
    own values are unknown here, and they depend on the data: look at the gradient norms in the run's report.
    `aux_weight` 0.4 is PSPNet's (arXiv 1612.01105, section 3.2).
    """

    temperature: float = 1.0
    logit_weight: float = 1.0
    feature_weight: float = 6.0
    aux_weight: float = 0.4
    kd_ignore: str = "none"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UsageError(f"temperature must be above 0, not {self.temperature}")
        for name in ("logit_weight", "feature_weight", "aux_weight"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.kd_ignore not in KD_IGNORES:
            raise UsageError(f"kd_ignore is one of {', '.join(KD_IGNORES)}, not {self.kd_ignore!r}")


class Totals(NamedTuple):
    """Pixels that a step's sums are divided by: global counts, divided by the number of processes.

    DDP averages gradients over processes, so sum / (global / processes) averages to sum of sums / global.
    """

    labelled: Tensor  # () float64, at least 1 / processes
    distilled: Tensor  # () float64, at least 1 / processes


def share_totals(
    counts: Tensor,  # (2,) float64, `Method.count` summed over all processes
    processes: int,
) -> Totals:
    """Totals for one process: at least one pixel, so that a batch without labels gives zero and not a NaN."""
    labelled, distilled = (counts.clamp(min=1) / processes).unbind()
    return Totals(labelled, distilled)


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a batch that takes part in distillation."""

    labels: Tensor  # (N, H, W) uint8 or int64
    valid: Tensor  # (N, 2) integer
    total_px: Tensor  # () float64, `Totals.distilled`
    kd_ignore: str

    def weights(self, map_size: tuple[int, int]) -> Tensor:
        """The part of every cell of a map that takes part, (N, h, w) float32 in [0, 1]."""
        if self.kd_ignore == "void":
            return labelled_cell_weights(self.labels, map_size)
        return cell_weights(self.valid, (self.labels.shape[-2], self.labels.shape[-1]), map_size)

    def mean(
        self,
        cells: Tensor,  # (N, h, w) at any resolution
    ) -> Tensor:
        """Mean over the crops' area, a scalar: a cell weighs the part of it that takes part."""
        # In pixels, not cells: then one global count serves targets of any resolution.
        cell_px = self.labels[0].numel() / cells[0].numel()
        weights = self.weights((cells.shape[-2], cells.shape[-1])).to(cells.dtype)
        return (cells * weights).sum() * cell_px / self.total_px.to(cells.dtype)


class Method(nn.Module):
    """Cross-entropy, and below it in the subclasses, what the teacher adds.

    A subclass sets `needs` and overrides `distill`. Parameters that it owns (projectors, heads) are trained with the
    student and are not part of it: they are in the training checkpoint and not in the saved student.

    Args:
        config: weights and temperature.
        student: for its channels, and for how its maps are resampled.
        teacher_channels: channels of the targets at hand by name ("logits", "features", "aux", "backbone").

    Raises:
        UsageError: a target that the method needs is not at hand, or student and teacher differ in classes.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, config: LossConfig, student: NetworkConfig, teacher_channels: Mapping[str, int]
    ) -> None:
        super().__init__()
        missing = [name for name in self.needs if name not in teacher_channels]
        if missing:
            raise UsageError(
                f"{type(self).__name__} needs the target {missing[0]!r}; there is only "
                f"{', '.join(teacher_channels) or 'nothing'}",
                hint=f"kdcache build --targets {','.join(self.needs)}",
            )
        for name in ("logits", "aux"):
            if name in self.needs and student.classes != teacher_channels[name]:
                raise UsageError(
                    f"the student has {student.classes} classes, the teacher's {name} {teacher_channels[name]}"
                )
        self.config = config
        self.align_corners = student.align_corners

    def count(
        self,
        labels: Tensor,  # (N, H, W) uint8 or int64
        valid: Tensor,  # (N, 2) integer, height and width of the region that is not padding
    ) -> Tensor:
        """This process's pixels, (2,) float64: labelled, and taking part in distillation."""
        labelled = (labels != IGNORE).sum()
        distilled = labelled if self.config.kd_ignore == "void" else valid.long().prod(dim=1).sum()
        return torch.stack([labelled, distilled]).double()

    def forward(
        self,
        student: NetworkOutput,
        targets: Mapping[str, Tensor],  # (N, channels, h, w) float32 by name, at least `needs`
        labels: Tensor,  # (N, H, W) uint8 or int64, 255 where there is no class
        valid: Tensor,  # (N, 2) integer
        totals: Totals,
    ) -> dict[str, Tensor]:
        """Named, weighted scalar terms; the loss is their sum."""
        region = Region(labels, valid, totals.distilled, self.config.kd_ignore)
        with torch.autocast(labels.device.type, enabled=False):
            terms = {"ce": self._cross_entropy(student.logits, labels, totals)}
            if student.aux is not None and self.config.aux_weight > 0:
                terms["aux"] = self.config.aux_weight * self._cross_entropy(student.aux, labels, totals)
            terms.update(self.distill(student, targets, region))
        return terms

    def distill(
        self, student: NetworkOutput, targets: Mapping[str, Tensor], region: Region
    ) -> dict[str, Tensor]:
        """The teacher's terms; runs with autocast off."""
        return {}

    def _cross_entropy(self, logits: Tensor, labels: Tensor, totals: Totals) -> Tensor:
        logits = resample(working_precision(logits), tuple(labels.shape[-2:]), self.align_corners)
        # The sum over no labelled pixel is a zero with a graph: DDP still sees a gradient for every parameter.
        total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="sum")
        return total / totals.labelled.to(total.dtype)

    def _logit_term(self, student: NetworkOutput, targets: Mapping[str, Tensor], region: Region) -> Tensor:
        teacher = working_precision(targets["logits"])
        own = resample(working_precision(student.logits), tuple(teacher.shape[-2:]), self.align_corners)
        return self.config.logit_weight * region.mean(pixel_kl(own, teacher, self.config.temperature))


class NoTeacher(Method):
    """Cross-entropy with the auxiliary head alone: the baseline, PSPNet (arXiv 1612.01105)."""


class LogitKD(Method):
    """T^2 / P sum over cells of KL(softmax(z_T / T) || softmax(z_S / T)), Hinton et al. (arXiv 1503.02531) per pixel.

    As `CriterionKD` in github.com/winycg/CIRKD: summed over classes and averaged over pixels, at stride 8, so that
    its weight does not depend on the number of classes (IFVD's variant divides by C too).
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)

    def distill(
        self, student: NetworkOutput, targets: Mapping[str, Tensor], region: Region
    ) -> dict[str, Tensor]:
        return {"logit": self._logit_term(student, targets, region)}


class FeatureKD(Method):
    """Mean over cells and channels of (W f_S - f_T)^2, FitNets (arXiv 1412.6550, equation 3) after the bottleneck.

    W is a 1x1 convolution without bias, as in CIRKD's FitNet, and stays when the widths agree: student and teacher
    share no basis. It belongs to the method, is trained with the student and dropped after.
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(
        self, config: LossConfig, student: NetworkConfig, teacher_channels: Mapping[str, int]
    ) -> None:
        super().__init__(config, student, teacher_channels)
        self.projector = nn.Conv2d(
            student.head_channels, teacher_channels["features"], kernel_size=1, bias=False
        )

    def distill(
        self, student: NetworkOutput, targets: Mapping[str, Tensor], region: Region
    ) -> dict[str, Tensor]:
        teacher = working_precision(targets["features"])
        own = resample(working_precision(student.features), tuple(teacher.shape[-2:]), self.align_corners)
        error = channel_mse(self.projector(own), teacher)
        return {"feature": self.config.feature_weight * region.mean(error)}


class LogitFeatureKD(FeatureKD):
    """Both terms: L_CE + alpha L_KD + beta L_feat of arXiv 2604.25530 (as a digest gives it)."""

    needs: ClassVar[tuple[str, ...]] = ("logits", "features")

    def distill(
        self, student: NetworkOutput, targets: Mapping[str, Tensor], region: Region
    ) -> dict[str, Tensor]:
        logit = self._logit_term(student, targets, region)
        return {"logit": logit, **super().distill(student, targets, region)}


METHODS: dict[str, type[Method]] = {
    "none": NoTeacher,
    "logit": LogitKD,
    "feature": FeatureKD,
    "logit+feature": LogitFeatureKD,
}


def find_method(name: str) -> type[Method]:
    """The method class of a name.

    Raises:
        UsageError: an unknown name; lists the known ones.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]


def pixel_kl(
    student: Tensor,  # (N, C, h, w) logits
    teacher: Tensor,  # (N, C, h, w) logits
    temperature: float,
) -> Tensor:
    """T^2 KL(teacher || student) per cell, summed over classes, (N, h, w).

    The factor T^2 keeps the gradient's size while T grows: it is (softmax(z_S/T) - softmax(z_T/T)) T.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * divergence


def channel_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over channels of the squared difference of two (N, D, h, w) maps, (N, h, w)."""
    return (student - teacher).square().mean(dim=1)
