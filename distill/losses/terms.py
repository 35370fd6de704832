"""A student's loss: cross-entropy, and the terms of a method.

A method is a set of named losses, each with a term class and a weight (methods.METHODS). A term class declares the
targets that it needs, so that an unsuitable store is refused before the first batch.

Three rules apply to every term:

* All arithmetic is in float32 or better, under autocast too: bfloat16 would add more error than the codec.
* Distillation happens at the teacher's resolution (stride 8), as in CIRKD; the student's maps are resampled to it.
  Cross-entropy is computed at the crop's resolution.
* Means are over the pixels that count, of all processes (region.py): two processes get the loss of one with the whole
  batch. Cross-entropy never counts void pixels; distillation does, unless `kd_ignore="void"`.

Not included: masking where the teacher is wrong, which no source describes, and warm-up of loss weights, which is used
for image classification only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdcache.cache.errors import UsageError
from kdcache.cache.images.classes import IGNORE
from kdcache.cache.networks.network import NetworkOutput
from kdcache.cache.views.maps import resample, working_precision
from kdcache.distill.config import KD_IGNORES, parse_weights
from kdcache.distill.losses.enlarged import enlarged_cross_entropy
from kdcache.distill.losses.region import Region, Totals

LABELS = "labels"
"""An entry of Term.needs that is not a target of the teacher: the labels of the crops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """The options of a run that change its method's terms; None keeps the method's own value. See TrainConfig.

    `aux_weight` 0.4 is PSPNet's (arXiv 1612.01105, section 3.2). Good weights depend on the data: the gradient norms in
    the run's report show how strong each term is.

    Raises:
        UsageError: a value is out of range.
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
        """The loss options of a TrainConfig."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    def replaced_weights(self) -> dict[str, float]:
        """Weights that replace the method's own, by term."""
        given = {"logit": self.logit_weight, "feature": self.feature_weight}
        named = {name: weight for name, weight in given.items() if weight is not None}
        return named | parse_weights(self.kd_terms)


class Pairs:
    """`pairs[target]`: the maps of student and teacher, both (N, channels, h, w), at the teacher's size, float32 or better."""

    def __init__(
        self, student: NetworkOutput, targets: Mapping[str, Tensor], *, align_corners: bool = False
    ) -> None:
        self._student = student._asdict()
        self._targets = targets
        self._align_corners = align_corners

    def __getitem__(self, target: str) -> tuple[Tensor, Tensor]:
        teacher = working_precision(self._targets[target])
        student = working_precision(self._student[target])
        return resample(student, tuple(teacher.shape[-2:]), self._align_corners), teacher


class Term(nn.Module):
    """One distillation loss.

    Its parameters (projectors, heads) are trained with the student. They and its buffers (queues) are saved in the
    training checkpoint, not in the student's file. Draw random numbers from the region, not from torch's global state.

    Args:
        student: channels of the student's outputs, by target.
        teacher: channels of the teacher's.
        temperature: replaces the class's own, if the class has one.
    """

    needs: ClassVar[tuple[str, ...]]
    """Targets of the teacher, and LABELS if the term uses labels."""
    temperature: float | None = None
    """Of the softmax, as the authors chose it; None for a term without one."""
    adversaries: ClassVar[tuple[str, ...]] = ()
    """Names of losses that train only the network of `make_adversary_optimiser`. They are not part of the student's loss."""
    identical_buffers: ClassVar[tuple[str, ...]] = ()
    """Names of buffers that every process computes equal, so that DDP need not broadcast them."""

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__()
        if self.temperature is not None and temperature is not None:
            self.temperature = temperature

    def forward(self, pairs: Pairs, region: Region) -> Tensor | dict[str, Tensor]:
        """The loss without its weight, a scalar; or several losses by name. Called with autocast off."""
        raise NotImplementedError

    def make_adversary_optimiser(self) -> torch.optim.Optimizer | None:
        """An optimiser for a network that trains against the student, such as a discriminator; None if there is none.

        The student's optimiser then leaves its parameters alone. Set the learning rates of the first step; they follow
        the student's schedule.
        """
        return None


Terms = Mapping[str, tuple[type[Term], float]]
"""By the name of the loss: the term class that computes it, and its weight."""


class StudentMaps(Protocol):
    """What a method has to know of a student's maps; a NetworkConfig says it."""

    @property
    def channels(self) -> Mapping[str, int]:
        """By target."""

    @property
    def align_corners(self) -> bool:
        """How the student's maps are resampled."""


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

    W is a 1x1 convolution without bias, as in CIRKD's FitNet. It is trained with the student and not saved with it.
    """

    needs = ("features",)

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__(student, teacher, temperature)
        # Even for equal widths: channel i of the student need not mean the same as channel i of the teacher.
        self.projector = nn.Conv2d(student["features"], teacher["features"], kernel_size=1, bias=False)

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        student, teacher = pairs["features"]
        return region.mean(channel_mse(self.projector(student), teacher))


class Method(nn.Module):
    """Cross-entropy, also of the auxiliary head (PSPNet, arXiv 1612.01105), plus the terms of a distillation method.

    Args:
        method_terms: a value of methods.METHODS.
        config: the run's changes to it.
        student: for its channels, and for how its maps are resampled.
        teacher_channels: channels of the available targets by name ("logits", "features", "aux", "backbone").

    Raises:
        UsageError: a target that a term needs is not available, student and teacher differ in classes, or `config`
            changes a term that the method does not have.
    """

    def __init__(
        self,
        method_terms: Terms,
        config: LossConfig,
        student: StudentMaps,
        teacher_channels: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.config = config
        self.align_corners = student.align_corners
        self.weights = term_weights(method_terms, config)
        terms: dict[str, Term] = {}
        for name in self.weights:
            kind = method_terms[name][0]
            # A term of several losses is built and run once, for the first of them.
            if kind not in map(type, terms.values()):
                _require_channels(name, kind, student.channels, teacher_channels)
                terms[name] = kind(student.channels, teacher_channels, config.temperature)
        self._terms = nn.ModuleDict(terms)
        self.adversaries = frozenset(name for term in terms.values() for name in term.adversaries)

    @property
    def terms(self) -> dict[str, Term]:
        """The terms by the name of their loss; a term of several losses by the name of its first."""
        return cast(dict[str, Term], dict(self._terms))

    def count(
        self,
        labels: Tensor,  # (N, H, W) uint8 or int64
        valid_size: Tensor,  # (N, 2) integer, height and width without padding
    ) -> Tensor:
        """The number of this process's pixels that have a label, and that count in distillation, (2,) float64."""
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
        targets: Mapping[
            str, Tensor
        ],  # (N, channels, h, w) float32 by name, at least those that the terms need
        labels: Tensor,  # (N, H, W) uint8 or int64, 255 for void
        valid_size: Tensor,  # (N, 2) integer, height and width without padding
        totals: Totals,
    ) -> dict[str, Tensor]:
        """Scalar losses by name, weighted. The student's loss is the sum of those that are not in `adversaries`."""
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
        """The distillation losses by name, weighted."""
        pairs = Pairs(student, targets, align_corners=self.align_corners)
        terms: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            found = term(pairs, region)
            for key, value in ({name: found} if isinstance(found, Tensor) else found).items():
                # The weight of "holistic" acts on the student only. A loss that is neither was left out: weight 0.
                if key in self.adversaries:
                    terms[key] = value
                elif key in self.weights:
                    terms[key] = self.weights[key] * value
        return terms

    def make_adversary_optimisers(self) -> list[torch.optim.Optimizer]:
        """The optimisers of networks that train against the student, in the order of the terms."""
        made = [term.make_adversary_optimiser() for term in self.terms.values()]
        return [optimiser for optimiser in made if optimiser is not None]

    def _cross_entropy(self, logits: Tensor, labels: Tensor, totals: Totals) -> Tensor:
        # The sum over no labelled pixel is a zero with a graph: DDP still sees a gradient for every parameter.
        total = enlarged_cross_entropy(working_precision(logits), labels, self.align_corners)
        return total / totals.labelled.to(total.dtype)


def term_weights(method_terms: Terms, config: LossConfig) -> dict[str, float]:
    """The weights of a run's losses by name, without those of weight 0.

    Raises:
        UsageError: `config` names a loss that the method does not have, or sets a temperature and the method has none.
    """
    weights = {name: weight for name, (_, weight) in method_terms.items()} | (
        changed := config.replaced_weights()
    )
    if unknown := [name for name in changed if name not in method_terms]:
        raise UsageError(
            f"the method has no term {unknown[0]!r}; its terms are: {', '.join(method_terms) or 'none'}",
            hint="leave this term out of --logit-weight, --feature-weight and --kd-terms",
        )
    active = {name: config.kd_weight * weight for name, weight in weights.items() if weight > 0}
    if config.temperature is not None and all(method_terms[name][0].temperature is None for name in active):
        raise UsageError(
            "--temperature: no term of the method has a temperature", hint="leave out --temperature"
        )
    return active


def term_needs(method_terms: Terms, config: LossConfig) -> tuple[str, ...]:
    """The teacher's targets, and possibly LABELS, that a run needs. Raises UsageError as `term_weights` does."""
    needs = (need for name in term_weights(method_terms, config) for need in method_terms[name][0].needs)
    return tuple(dict.fromkeys(needs))


def pixel_kl(
    student: Tensor,  # (N, C, h, w) logits
    teacher: Tensor,  # (N, C, h, w) logits
    temperature: float,
) -> Tensor:
    """T^2 KL(teacher || student) per cell, summed over classes, (N, h, w)."""
    # T^2, as Hinton et al.: the gradient, T (softmax(z_S/T) - softmax(z_T/T)), then keeps its size as T grows.
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * kl_divergence(log_student, log_teacher, dim=1)


def kl_divergence(log_student: Tensor, log_teacher: Tensor, dim: int) -> Tensor:
    """KL(teacher || student) of log-probabilities, summed over `dim`."""
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=dim)


def channel_mse(
    student: Tensor,  # (N, D, h, w)
    teacher: Tensor,  # (N, D, h, w); gets no gradient
) -> Tensor:
    """Mean over channels of the squared difference of two maps, (N, h, w). Differentiable once."""
    error: Tensor = _ChannelMSE.apply(student, teacher)
    return error


class _ChannelMSE(torch.autograd.Function):
    """Written out because maps of 512 channels are 134 MB at 512x1024: this moves half the bytes of the plain formula."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        difference = student - teacher
        ctx.save_for_backward(difference)
        # One pass over the difference; the root and its square cost a rounding each.
        norm: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return norm.square() / difference.shape[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_error: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference * (by_error * (2 / difference.shape[1]))[:, None], None


def _require_channels(
    name: str, kind: type[Term], student: Mapping[str, int], teacher: Mapping[str, int]
) -> None:
    needs = [need for need in kind.needs if need != LABELS]
    if missing := [need for need in needs if need not in teacher]:
        raise UsageError(
            f"the term {name!r} needs the target {missing[0]!r}; available: {', '.join(teacher) or 'none'}",
            hint=f"kdcache build --targets {','.join(needs)}",
        )
    if "aux" in needs and "aux" not in student:
        raise UsageError(
            f"the term {name!r} needs an auxiliary head, and the student has none",
            hint=f"--kd-terms {name}=0 to leave out the term",
        )
    for target in ("logits", "aux"):
        if target in needs and student[target] != teacher[target]:
            raise UsageError(
                f"the student has {student[target]} classes, but the teacher's {target} have {teacher[target]}"
            )
