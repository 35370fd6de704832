"""The effect of stored targets on learning: the cosine between a student's gradients with exact and with stored targets.

A partly trained student sees some crops. The gradient of each method's distillation terms is computed twice, with exact
and with stored targets. Cross-entropy is left out: it is the same in both and would hide a difference. Methods that train
more than a projector (a generator, a discriminator, a head before a memory) are left out too: their random start says
little about the gradients later in training.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.cache.networks.network import NetworkOutput, SegmentationNetwork
from kdcache.cache.networks.normalisation import Normalisation
from kdcache.cache.views.maps import resample
from kdcache.distill.losses.methods import METHODS, build_method
from kdcache.distill.losses.region import Region
from kdcache.distill.losses.terms import LABELS, FeatureMSE, LossConfig, Method, term_needs

_RIDGE = 1e-6  # times the features' mean square: keeps the fit solvable when channels are always 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetPair:
    """A batch of crops with the teacher's exact outputs and those decoded from a store, all on one device."""

    image: Tensor  # (N, H, W, 3) uint8
    label: Tensor  # (N, H, W) uint8
    valid_size: Tensor  # (N, 2) integer
    exact: Mapping[str, Tensor]  # by target, (N, C, h, w) float32
    stored: Mapping[str, Tensor]


def gradient_cosines(
    student: SegmentationNetwork,
    normalisation: Normalisation,
    batches: Sequence[TargetPair],
    config: LossConfig | None = None,
) -> dict[str, float]:
    """The cosine between a method's two gradients with respect to all parameters of the student, by method.

    Methods whose targets are not in the batches are left out.

    Returns:
        Means over batches, from -1 to 1; 1 if stored targets change nothing.
    """
    student = copy.deepcopy(student).train()  # a copy, because training mode changes BatchNorm statistics
    methods = _methods(student, batches, config or LossConfig())
    for method in methods.values():
        for term in method.terms.values():
            if isinstance(term, FeatureMSE):
                _fit_projector(term, method, student, normalisation, batches)
    found: dict[str, list[float]] = {name: [] for name in methods}
    for batch in batches:
        output = _forward(student, normalisation, batch)
        for name, method in methods.items():
            exact, stored = (
                _gradient(student, method, output, targets, batch) for targets in (batch.exact, batch.stored)
            )
            found[name].append(float(torch.cosine_similarity(exact, stored, dim=0)))
    return {name: sum(cosines) / len(cosines) for name, cosines in found.items()}


def _methods(
    student: SegmentationNetwork, batches: Sequence[TargetPair], config: LossConfig
) -> dict[str, Method]:
    """The methods whose targets are available and that train at most a FeatureMSE projector, by name."""
    channels = {name: target.shape[1] for name, target in batches[0].exact.items()}
    methods = {}
    for name, terms in METHODS.items():
        needs = term_needs(terms, config)
        if needs and set(needs) <= {*channels, LABELS}:
            method = build_method(name, config, student.config, channels).to(batches[0].image.device)
            if all(
                isinstance(term, FeatureMSE) or not [*term.parameters()] for term in method.terms.values()
            ):
                methods[name] = method
    return methods


def _forward(student: SegmentationNetwork, normalisation: Normalisation, batch: TargetPair) -> NetworkOutput:
    torch.manual_seed(0)  # the same dropout for fitting the projector and for the gradients
    output: NetworkOutput = student(normalisation(batch.image, batch.valid_size))
    return output


def _gradient(
    student: SegmentationNetwork,
    method: Method,
    output: NetworkOutput,
    targets: Mapping[str, Tensor],
    batch: TargetPair,
) -> Tensor:
    """The gradient of a method's distillation loss with respect to the student's parameters, flat, (P,) float64."""
    terms = method.distill(output, targets, _region(method, batch))
    gradients = torch.autograd.grad(
        torch.stack(list(terms.values())).sum(),
        list(student.parameters()),
        retain_graph=True,
        materialize_grads=True,
    )
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def _region(method: Method, batch: TargetPair) -> Region:
    return Region(
        batch.label, batch.valid_size, method.count(batch.label, batch.valid_size)[1], method.config.kd_ignore
    )


@torch.no_grad()
def _fit_projector(
    term: FeatureMSE,
    method: Method,
    student: SegmentationNetwork,
    normalisation: Normalisation,
    batches: Sequence[TargetPair],
) -> None:
    """Set a projector to the least-squares fit from the student's features to the teacher's exact ones.

    There the loss is smallest, so that errors of the targets have the largest effect on its gradient.
    """
    # The normal equations W (S S^T) = T S^T, summed over batches: all features would not fit the memory.
    inner, outer = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for batch in batches:
        teacher = batch.exact["features"]
        size = (teacher.shape[2], teacher.shape[3])
        features = _forward(student, normalisation, batch).features
        resampled = resample(features, size, method.align_corners)
        student_cells = resampled.movedim(1, 0).flatten(1).double().cpu()  # (D, cells)
        teacher_cells = teacher.movedim(1, 0).flatten(1).double().cpu()
        weights = _region(method, batch).weights(size).flatten().double().cpu()
        inner = inner + (student_cells * weights) @ student_cells.T
        outer = outer + (teacher_cells * weights) @ student_cells.T
    ridge = _RIDGE * inner.diagonal().mean() * torch.eye(len(inner), dtype=torch.float64)
    solution = torch.linalg.solve(inner + ridge, outer, left=False)
    term.projector.weight.copy_(solution[:, :, None, None])
