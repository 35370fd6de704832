"""What stored targets do to learning: the cosine between a student's gradients with exact and with stored targets.

A half-trained student is put through some crops; each method's distillation terms are differentiated twice, against
the exact targets and against the stored ones. Cross-entropy is left out: it is the same on both sides and would only
hide a difference. A projector that a method trains is set to its best linear fit, where what is left of the loss is
smallest and an error of the targets weighs most. A method that trains more than that (a generator, a discriminator, a
head before a memory) is left out: where it begins, at random, says little of where it will be.
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

_RIDGE = 1e-6  # of the features' mean square: dead channels have no say


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetPair:
    """Some crops, what the teacher says of them, and what a store has kept of that; all on one device."""

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
    """By method, the mean over batches of the cosine between its two gradients, over all parameters of the student.

    Methods whose targets are not in the batches are left out. The student works in training mode, on a copy.
    """
    student = copy.deepcopy(student).train()
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
    """Those whose targets are at hand and that train no more than a projector, by name."""
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
    torch.manual_seed(0)  # dropout
    output: NetworkOutput = student(normalisation(batch.image, batch.valid_size))
    return output


def _gradient(
    student: SegmentationNetwork,
    method: Method,
    output: NetworkOutput,
    targets: Mapping[str, Tensor],
    batch: TargetPair,
) -> Tensor:
    """Of a method's distillation terms by the student's parameters, flat, float64."""
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
    """Set a projector to the least-squares fit from the student's features to the teacher's exact ones."""
    inner, outer = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for batch in batches:
        teacher = batch.exact["features"]
        size = (teacher.shape[2], teacher.shape[3])
        features = _forward(student, normalisation, batch).features
        own = resample(features, size, method.align_corners).movedim(1, 0).flatten(1).double().cpu()
        weights = _region(method, batch).weights(size).flatten().double().cpu()
        inner = inner + (own * weights) @ own.T
        outer = outer + (teacher.movedim(1, 0).flatten(1).double().cpu() * weights) @ own.T
    ridge = _RIDGE * inner.diagonal().mean() * torch.eye(len(inner), dtype=torch.float64)
    solution = torch.linalg.solve(inner + ridge, outer, left=False)
    term.projector.weight.copy_(solution[:, :, None, None])
