"""Terms of how cells relate to others: of their image (SKD), of their class (IFVD), of the batch (CIRKD).

A map of 64x128 cells has 8192^2 relations to another one: 268 MB in float32, for student and teacher, for every pair of
images. The gradient of their divergence is known in closed form and small, so it is taken at once, block by block, and
the relations are dropped.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdcache.cache.images.classes import IGNORE
from kdcache.distill.losses.masked import max_pool
from kdcache.distill.losses.processes import count_processes, gather_images
from kdcache.distill.losses.region import LEAST, Region
from kdcache.distill.losses.terms import LABELS, Pairs, Term


class PairSimilarity(Term):
    """Mean over pairs of nodes of (a_S - a_T)^2, a_ij = cosine of the features at nodes i and j; mean over images.

    SKD's pair-wise distillation, Liu et al. (arXiv 1903.04197). Nodes are maxima over windows of half the
    map's height and width, 2x2 or 3x3 of them: `CriterionPairWiseforWholeFeatAfterPool` with scale 0.5 in
    github.com/irfanICMLL/structure_knowledge_distillation. As there, no gradient goes through the norms.
    """

    needs = ("features",)

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        own, teacher = pairs["features"]
        size = (teacher.shape[-2], teacher.shape[-1])
        kernel = (max(1, size[0] // 2), max(1, size[1] // 2))
        weights = region.weights(size)
        nodes = [max_pool(maps, weights, kernel, ceil_mode=True) for maps in (own, teacher)]
        of_node = nodes[0][1].flatten(1)
        of_pair = of_node[:, :, None] * of_node[:, None, :]
        error = (_cosines(nodes[0][0]) - _cosines(nodes[1][0])).square() * of_pair
        total = of_pair.sum(dim=(1, 2)).clamp(min=LEAST)
        return region.mean_of_images(error.sum(dim=(1, 2)) / total, size)


class IntraClassVariation(Term):
    """Mean over cells of (s_S - s_T)^2, s = cosine of a cell's features and the mean of its class in the image.

    IFVD, Wang et al. (ECCV 2020, "Intra-class Feature Variation Distillation for Semantic Segmentation"):
    `CriterionIFV` in github.com/YukangWang/IFVD. A cell without a label varies from nothing and adds nothing.
    """

    needs = ("features", LABELS)

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__(student, teacher, temperature)
        self.classes = student["logits"]

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        own, teacher = pairs["features"]
        labels = region.classes((teacher.shape[-2], teacher.shape[-1]))
        variations = [_cosines_to_class_means(maps, labels, self.classes) for maps in (own, teacher)]
        return region.mean((variations[0] - variations[1]).square() * (labels != IGNORE))


class CrossImage(Term):
    """Mean over cells p and images n of KL(softmax(f_p F_n^T / 0.1) of teacher || student), features of unit length.

    CIRKD's mini-batch pixel-to-pixel distillation, Yang et al. (arXiv 2204.06986):
    `CriterionMiniBatchCrossImagePair` in github.com/winycg/CIRKD without pooling. Images are those of all processes;
    that code takes those of one GPU.
    """

    needs = ("features",)

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        own, teacher = (unit_cells(maps) for maps in pairs["features"])
        height, width = pairs["features"][1].shape[-2:]
        weights = region.weights((height, width)).flatten(1).to(own.dtype)
        own_keys, teacher_keys, key_weights = map(gather_images, (own, teacher, weights))
        areas = key_weights.sum(dim=1)
        total = areas.sum().clamp(min=LEAST)
        loss = own.new_zeros(())
        for image in range(len(own)):
            for other in range(len(own_keys)):
                loss = loss + areas[other] / total * relation_divergence(
                    own[image],
                    own_keys[other],
                    teacher[image],
                    teacher_keys[other],
                    weights[image],
                    key_weights[other],
                    CONTRAST_TEMPERATURE,
                )
        return loss * count_processes() / total


CONTRAST_TEMPERATURE = 0.1  # CIRKD's


def _cosines(
    nodes: Tensor,  # (N, D, i, j)
) -> Tensor:
    """Between all pairs of nodes, (N, i j, i j)."""
    norms = torch.linalg.vector_norm(nodes, dim=1, keepdim=True).detach() + 1e-8
    flat: Tensor = (nodes / norms).flatten(2)
    return flat.mT @ flat


def _cosines_to_class_means(
    maps: Tensor,  # (N, D, h, w)
    labels: Tensor,  # (N, h, w)
    classes: int,
) -> Tensor:
    """Of every cell to the mean of its image's cells of its class, (N, h, w)."""
    member = (labels.flatten(1)[:, :, None] == torch.arange(classes, device=labels.device)).to(maps.dtype)
    cells = maps.flatten(2)
    means = cells @ member / (member.sum(dim=1, keepdim=True) + 1e-6)  # (N, D, classes)
    return F.cosine_similarity(cells, means @ member.mT, dim=1).reshape(labels.shape)


def unit_cells(maps: Tensor) -> Tensor:
    """(N, D, h, w) -> cells of unit length, (N, h w, D)."""
    return F.normalize(maps, dim=1).flatten(2).mT.contiguous()


BLOCK = 2**26  # relations held at a time, some five times over


def relation_divergence(
    own: Tensor,  # (P, D) the student's cells
    own_keys: Tensor,  # (K, D)
    teacher: Tensor,  # (P, E) the teacher's
    teacher_keys: Tensor,  # (K, E)
    weights: Tensor,  # (P,)
    key_weights: Tensor,  # (K,) a key of weight 0 is as if it were not there
    temperature: float,
) -> Tensor:
    """Sum over cells of weights KL(softmax(teacher . teacher_keys / T) || softmax(own . own_keys / T)), a scalar.

    Differentiable once, by `own` and `own_keys`.
    """
    loss: Tensor = _RelationDivergence.apply(
        own, own_keys, teacher, teacher_keys, weights, key_weights, temperature
    )
    return loss


class _RelationDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        own: Tensor,
        own_keys: Tensor,
        teacher: Tensor,
        teacher_keys: Tensor,
        weights: Tensor,
        key_weights: Tensor,
        temperature: float,
    ) -> Tensor:
        outside = key_weights == 0
        share = key_weights.masked_fill(outside, 1).log()
        share = share.masked_fill(outside, torch.finfo(own.dtype).min)
        loss = own.new_zeros(())
        by_own = torch.zeros_like(own)
        by_keys = torch.zeros_like(own_keys) if ctx.needs_input_grad[1] else None
        rows = max(1, BLOCK // len(own_keys))
        for start in range(0, len(own), rows):
            block = slice(start, start + rows)
            log_own = F.log_softmax(own[block] @ own_keys.T / temperature + share, dim=1)
            log_teacher = F.log_softmax(teacher[block] @ teacher_keys.T / temperature + share, dim=1)
            p_teacher = log_teacher.exp()
            loss += weights[block] @ (p_teacher * (log_teacher - log_own)).sum(dim=1)
            by_relation = (log_own.exp() - p_teacher) * (weights[block] / temperature)[:, None]
            by_own[block] = by_relation @ own_keys
            if by_keys is not None:
                by_keys += by_relation.T @ own[block]
        ctx.save_for_backward(by_own, by_keys)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_own, by_keys = ctx.saved_tensors
        of_keys = None if by_keys is None else gradient * by_keys
        return gradient * by_own, of_keys, None, None, None, None, None
