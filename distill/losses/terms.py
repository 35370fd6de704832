"""What a student's loss is made of: cross-entropy, and the terms of a method, each a class.

A method is a set of terms: names, each with a class of term and its weight (methods.METHODS). A term states what it needs, so
that a store that lacks it is refused before the first batch.

Three rules hold for every term:

* All arithmetic is in float32 at least, under autocast too: a KL divergence in bfloat16 loses what the codec kept.
* Distillation happens at the teacher's resolution (stride 8), as in CIRKD; a student map of another size is resampled
  to it bilinearly. Cross-entropy is taken at the crop's resolution.
* Means are over all processes and over what takes part (region.py): a term of two processes is that of one which saw
  the whole batch.

Padding takes no part in any term. Void pixels take part in distillation, where the teacher has an opinion, unless
`kd_ignore="void"`; cross-entropy ignores them always.

Left out on purpose: masking by the teacher's correctness, which is in no source, and warm-up of the weights, which only
recipes of image classification have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.cache.errors import UsageError
from kdcache.cache.images.classes import IGNORE
from kdcache.cache.networks.network import NetworkConfig, NetworkOutput
from kdcache.cache.views.maps import resample, working_precision
from kdcache.distill.config import KD_IGNORES, parse_weights
from kdcache.distill.losses.enlarged import enlarged_cross_entropy
from kdcache.distill.losses.region import Region, Totals

LABELS = "labels"
"""What a term needs beside targets of the teacher: the labels of the crops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """What a run changes in its method's terms; None leaves it as it is.

    `aux_weight` 0.4 is PSPNet's (arXiv 1612.01105, section 3.2). Weights depend on the data: look at the gradient
    norms in the run's report.
    """

    temperature: float | None = None
    kd_weight: float = 1.0
    kd_terms: str = ""
    logit_weight: float | None = None
    feature_weight: float | None = None
    aux_weight: float = 0.4
    kd_ignore: str = "none"

    def __post_init__(self) -> None:
        for name in ("temperature", "kd_weight"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"{name} must be above 0, not {value}")
        for name in ("logit_weight", "feature_weight", "aux_weight"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UsageError(f"{name} must be at least 0, not {value}")
        if self.kd_ignore not in KD_IGNORES:
            raise UsageError(f"kd_ignore is one of {', '.join(KD_IGNORES)}, not {self.kd_ignore!r}")

    @classmethod
    def of(cls, config: object) -> Self:
        """The fields of a TrainConfig that are also here."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    def changed_weights(self) -> dict[str, float]:
        """Weights in place of the method's own, by term."""
        given = {"logit": self.logit_weight, "feature": self.feature_weight}
        named = {name: weight for name, weight in given.items() if weight is not None}
        return named | parse_weights(self.kd_terms)


class Pairs:
    """The student's and the teacher's map of a target, at the teacher's resolution, in float32 at least."""

    def __init__(
        self, student: NetworkOutput, targets: Mapping[str, Tensor], *, align_corners: bool = False
    ) -> None:
        self._student = student._asdict()
        self._targets = targets
        self._align_corners = align_corners

    def __getitem__(self, target: str) -> tuple[Tensor, Tensor]:
        teacher = working_precision(self._targets[target])
        own = working_precision(self._student[target])
        return resample(own, tuple(teacher.shape[-2:]), self._align_corners), teacher


class Term(nn.Module):
    """One distillation loss.

    Parameters that it owns (projectors, heads) are trained with the student and are not part of it: they are in the
    training checkpoint and not in the saved student. So are buffers (queues). Random numbers come from the region.

    Args:
        student: the student's channels by target.
        teacher: the teacher's.
        temperature: in place of the class's own, for classes that have one.
    """

    needs: ClassVar[tuple[str, ...]]
    """Targets of the teacher, and LABELS."""
    temperature: float | None = None
    """Of a softmax; the authors' value, None where there is none to choose."""
    adversaries: ClassVar[tuple[str, ...]] = ()
    """Names of losses that train what `own_optimiser` trains, and nothing else."""
    alike: ClassVar[tuple[str, ...]] = ()
    """Buffers that come out the same in every process, so that DDP need not send them around."""

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__()
        if self.temperature is not None and temperature is not None:
            self.temperature = temperature

    def forward(self, pairs: Pairs, region: Region) -> Tensor | dict[str, Tensor]:
        """The loss without its weight, a scalar; a term of several losses names each. Runs with autocast off."""
        raise NotImplementedError

    def own_optimiser(self) -> torch.optim.Optimizer | None:
        """For a network that the student's optimiser leaves alone; its learning rates are those at the start."""
        return None


Terms = Mapping[str, tuple[type[Term], float]]
"""Names of losses, each with the term that gives it and its weight."""


class PixelKL(Term):
    """T^2 / P sum over cells of KL(softmax(z_T / T) || softmax(z_S / T)), Hinton et al. (arXiv 1503.02531) per pixel.

    As `CriterionKD` in github.com/winycg/CIRKD: summed over classes and averaged over pixels, at stride 8, so that
    its weight does not depend on the number of classes (IFVD's variant divides by C too).
    """

    needs = ("logits",)
    temperature = 1.0

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        assert self.temperature is not None
        return region.mean(pixel_kl(*pairs["logits"], self.temperature))


class FeatureMSE(Term):
    """Mean over cells and channels of (W f_S - f_T)^2, FitNets (arXiv 1412.6550, equation 3) after the bottleneck.

    W is a 1x1 convolution without bias, as in CIRKD's FitNet, and stays when the widths agree: student and teacher
    share no basis. It belongs to the method, is trained with the student and dropped after.
    """

    needs = ("features",)

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__(student, teacher, temperature)
        self.projector = nn.Conv2d(student["features"], teacher["features"], kernel_size=1, bias=False)

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        own, teacher = pairs["features"]
        return region.mean(channel_mse(self.projector(own), teacher))


class Method(nn.Module):
    """Cross-entropy with the auxiliary head (PSPNet, arXiv 1612.01105), and what the teacher adds.

    Args:
        method_terms: a value of methods.METHODS.
        config: what changes in it.
        student: for its channels, and for how its maps are resampled.
        teacher_channels: channels of the targets at hand by name ("logits", "features", "aux", "backbone").

    Raises:
        UsageError: a target that a term needs is not at hand, student and teacher differ in classes, or `config`
            changes what the method does not have.
    """

    def __init__(
        self,
        method_terms: Terms,
        config: LossConfig,
        student: NetworkConfig,
        teacher_channels: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.config = config
        self.align_corners = student.align_corners
        self.weights = term_weights(method_terms, config)
        terms: dict[str, Term] = {}
        for name in self.weights:
            kind = method_terms[name][0]
            if kind not in map(type, terms.values()):
                _require_channels(name, kind, student.channels, teacher_channels)
                terms[name] = kind(student.channels, teacher_channels, config.temperature)
        self._terms = nn.ModuleDict(terms)
        self.adversaries = frozenset(name for term in terms.values() for name in term.adversaries)

    @property
    def terms(self) -> dict[str, Term]:
        """By name; a term of several losses by the first of theirs."""
        return cast(dict[str, Term], dict(self._terms))

    def count(
        self,
        labels: Tensor,  # (N, H, W) uint8 or int64
        valid_size: Tensor,  # (N, 2) integer, height and width of the region that is not padding
    ) -> Tensor:
        """This process's pixels, (2,) float64: labelled, and taking part in distillation."""
        labelled = (labels != IGNORE).sum()
        distilled = valid_size.long().prod(dim=1).sum()
        if self.config.kd_ignore == "void":
            distilled = labelled
        elif self.config.kd_ignore == "published":
            distilled = torch.full_like(labelled, labels.numel())
        return torch.stack([labelled, distilled]).double()

    def forward(
        self,
        student: NetworkOutput,
        targets: Mapping[str, Tensor],  # (N, channels, h, w) float32 by name, at least what the terms need
        labels: Tensor,  # (N, H, W) uint8 or int64, 255 where there is no class
        valid_size: Tensor,  # (N, 2) integer
        totals: Totals,
    ) -> dict[str, Tensor]:
        """Named, weighted scalar terms. The student's loss is the sum of those that are not `rivals`."""
        draws = torch.Generator().manual_seed(totals.seed)
        region = Region(labels, valid_size, totals.distilled, self.config.kd_ignore, draws)
        with torch.autocast(labels.device.type, enabled=False):
            terms = {"ce": self._cross_entropy(student.logits, labels, totals)}
            if student.aux is not None and self.config.aux_weight > 0:
                terms["aux"] = self.config.aux_weight * self._cross_entropy(student.aux, labels, totals)
            terms.update(self.distill(student, targets, region))
        return terms

    def distill(
        self, student: NetworkOutput, targets: Mapping[str, Tensor], region: Region
    ) -> dict[str, Tensor]:
        """The teacher's terms, weighted."""
        pairs = Pairs(student, targets, align_corners=self.align_corners)
        terms: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            found = term(pairs, region)
            for key, value in ({name: found} if isinstance(found, Tensor) else found).items():
                if key in self.adversaries:
                    terms[key] = value
                elif key in self.weights:
                    terms[key] = self.weights[key] * value
        return terms

    def own_optimisers(self) -> list[torch.optim.Optimizer]:
        """Of what the student's optimiser leaves alone."""
        made = [term.own_optimiser() for term in self.terms.values()]
        return [optimiser for optimiser in made if optimiser is not None]

    def _cross_entropy(self, logits: Tensor, labels: Tensor, totals: Totals) -> Tensor:
        # The sum over no labelled pixel is a zero with a graph: DDP still sees a gradient for every parameter.
        total = enlarged_cross_entropy(working_precision(logits), labels, self.align_corners)
        return total / totals.labelled.to(total.dtype)


def term_weights(method_terms: Terms, config: LossConfig) -> dict[str, float]:
    """Weights of a method's terms as a run has them, without those of weight 0.

    Raises:
        UsageError: `config` names a loss, or sets a temperature, that the method does not have.
    """
    weights = {name: weight for name, (_, weight) in method_terms.items()} | (
        changed := config.changed_weights()
    )
    if unknown := [name for name in changed if name not in method_terms]:
        raise UsageError(
            f"the method has no term {unknown[0]!r} whose weight could be set; it has "
            f"{', '.join(method_terms) or 'none'}",
            hint="--logit-weight, --feature-weight and --kd-terms change weights of a method's own terms",
        )
    active = {name: config.kd_weight * weight for name, weight in weights.items() if weight > 0}
    if config.temperature is not None and all(method_terms[name][0].temperature is None for name in active):
        raise UsageError("--temperature: no term of the method has one", hint="leave it out")
    return active


def term_needs(method_terms: Terms, config: LossConfig) -> tuple[str, ...]:
    """Targets of the teacher, and LABELS, that a run of a method needs. Raises as `term_weights` does."""
    needs = (need for name in term_weights(method_terms, config) for need in method_terms[name][0].needs)
    return tuple(dict.fromkeys(needs))


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
    return temperature**2 * divergence(log_student, log_teacher, dim=1)


def divergence(log_student: Tensor, log_teacher: Tensor, dim: int) -> Tensor:
    """KL(teacher || student) of log-probabilities, summed over `dim`."""
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=dim)


def channel_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over channels of the squared difference of two (N, D, h, w) maps, (N, h, w)."""
    return (student - teacher).square().mean(dim=1)


def _require_channels(
    name: str, kind: type[Term], student: Mapping[str, int], teacher: Mapping[str, int]
) -> None:
    needs = [need for need in kind.needs if need != LABELS]
    if missing := [need for need in needs if need not in teacher]:
        raise UsageError(
            f"the term {name!r} needs the target {missing[0]!r}; there is only "
            f"{', '.join(teacher) or 'nothing'}",
            hint=f"kdcache build --targets {','.join(needs)}",
        )
    if "aux" in needs and "aux" not in student:
        raise UsageError(
            f"the term {name!r} needs an auxiliary head, which the student lacks",
            hint=f"--kd-terms {name}=0 leaves the term out",
        )
    for target in ("logits", "aux"):
        if target in needs and student[target] != teacher[target]:
            raise UsageError(
                f"the student has {student[target]} classes, the teacher's {target} {teacher[target]}"
            )
