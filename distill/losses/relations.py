"""Terms on relations between cells: of an image (SKD), of a class (IFVD), of the batch (CIRKD)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdcache.cache.images.classes import IGNORE
from kdcache.distill.losses.masked import max_pool
from kdcache.distill.losses.processes import count_processes, gather_images
from kdcache.distill.losses.region import MIN_AREA, Region
from kdcache.distill.losses.terms import LABELS, Pairs, Term


class PairSimilarity(Term):
    """Mean over pairs of nodes of (a_S - a_T)^2, a_ij = cosine of the features at nodes i and j; mean over images.

    SKD's pair-wise distillation, Liu et al. (arXiv 1903.04197). The nodes are maxima over windows of half the map's
    height and width: `CriterionPairWiseforWholeFeatAfterPool` with scale 0.5 in
    github.com/irfanICMLL/structure_knowledge_distillation.
    """

    needs = ("features",)

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        student, teacher = pairs["features"]
        size = (teacher.shape[-2], teacher.shape[-1])
        kernel = (max(1, size[0] // 2), max(1, size[1] // 2))
        weights = region.weights(size)
        # 2x2 nodes, or 3x3 where a side is odd: ceil_mode adds a window for the last row or column, as published.
        nodes = [max_pool(maps, weights, kernel, ceil_mode=True) for maps in (student, teacher)]
        node_weights = nodes[0][1].flatten(1)
        pair_weights = node_weights[:, :, None] * node_weights[:, None, :]
        error = (_cosines(nodes[0][0]) - _cosines(nodes[1][0])).square() * pair_weights
        total = pair_weights.sum(dim=(1, 2)).clamp(min=MIN_AREA)
        return region.mean_of_images(error.sum(dim=(1, 2)) / total, size)


class IntraClassVariation(Term):
    """Mean over cells of (s_S - s_T)^2, s = cosine of a cell's features and the mean of its class in the image.

    IFVD, Wang et al. (ECCV 2020, "Intra-class Feature Variation Distillation for Semantic Segmentation"):
    `CriterionIFV` in github.com/YukangWang/IFVD. A cell without a label counts with an error of 0.
    """

    needs = ("features", LABELS)

    def __init__(
        self, student: Mapping[str, int], teacher: Mapping[str, int], temperature: float | None = None
    ) -> None:
        super().__init__(student, teacher, temperature)
        self.classes = student["logits"]

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        student, teacher = pairs["features"]
        labels = region.classes((teacher.shape[-2], teacher.shape[-1]))
        variations = [_cosines_to_class_means(maps, labels, self.classes) for maps in (student, teacher)]
        return region.mean((variations[0] - variations[1]).square() * (labels != IGNORE))


class CrossImage(Term):
    """Mean over cells p and images n of KL(softmax(f_p F_n^T / 0.1) of teacher || student), features of unit length.

    CIRKD's mini-batch pixel-to-pixel distillation, Yang et al. (arXiv 2204.06986):
    `CriterionMiniBatchCrossImagePair` in github.com/winycg/CIRKD without pooling. The images are those of all processes;
    that code uses those of one GPU.
    """

    needs = ("features",)

    def forward(self, pairs: Pairs, region: Region) -> Tensor:
        student, teacher = (unit_cells(maps) for maps in pairs["features"])
        height, width = pairs["features"][1].shape[-2:]
        weights = region.weights((height, width)).flatten(1).to(student.dtype)
        student_keys, teacher_keys, key_weights = map(gather_images, (student, teacher, weights))
        areas = key_weights.sum(dim=1)
        total = areas.sum().clamp(min=MIN_AREA)
        loss = student.new_zeros(())
        for image in range(len(student)):
            for other in range(len(student_keys)):
                loss = loss + areas[other] / total * relation_divergence(
                    student[image],
                    student_keys[other],
                    teacher[image],
                    teacher_keys[other],
                    weights[image],
                    key_weights[other],
                    CONTRAST_TEMPERATURE,
                )
        # `loss` is of this process's images, `total` of all processes; DDP divides by their number again.
        return loss * count_processes() / total


CONTRAST_TEMPERATURE = 0.1  # CIRKD's


def _cosines(
    nodes: Tensor,  # (N, D, i, j)
) -> Tensor:
    """Cosines between all pairs of nodes, (N, i x j, i x j)."""
    # Detached, as in SKD's code: no gradient goes through the norms.
    norms = torch.linalg.vector_norm(nodes, dim=1, keepdim=True).detach() + 1e-8
    flat: Tensor = (nodes / norms).flatten(2)
    return flat.mT @ flat


def _cosines_to_class_means(
    maps: Tensor,  # (N, D, h, w)
    labels: Tensor,  # (N, h, w)
    classes: int,
) -> Tensor:
    """Cosine of every cell's features with the mean of its class in the image, (N, h, w)."""
    is_of_class = (labels.flatten(1)[:, :, None] == torch.arange(classes, device=labels.device)).to(
        maps.dtype
    )
    cells = maps.flatten(2)
    means = cells @ is_of_class / (is_of_class.sum(dim=1, keepdim=True) + 1e-6)  # (N, D, classes)
    return F.cosine_similarity(cells, means @ is_of_class.mT, dim=1).reshape(labels.shape)


def unit_cells(maps: Tensor) -> Tensor:
    """The cells of (N, D, h, w) maps, scaled to unit length, (N, h x w, D)."""
    return F.normalize(maps, dim=1).flatten(2).mT.contiguous()


BLOCK = 2**26  # relations in memory at a time: 268 MB in float32, and some five tensors of that size


def relation_divergence(
    student: Tensor,  # (P, D) the student's cells, of unit length
    student_keys: Tensor,  # (K, D) the cells that they are compared with
    teacher: Tensor,  # (P, E) the same of the teacher
    teacher_keys: Tensor,  # (K, E)
    weights: Tensor,  # (P,)
    key_weights: Tensor,  # (K,) a key of weight 0 has no effect
    temperature: float,
) -> Tensor:
    """Weighted sum over cells of KL(softmax(teacher teacher_keys^T / T) || softmax(student student_keys^T / T)), a scalar.

    Differentiable once, with respect to `student` and `student_keys`.
    """
    loss: Tensor = _RelationDivergence.apply(
        student, student_keys, teacher, teacher_keys, weights, key_weights, temperature
    )
    return loss


class _RelationDivergence(torch.autograd.Function):
    """Computes the gradient in the forward pass, block by block.

    Two maps of 64x128 cells have 8192^2 relations: 268 MB in float32, for student and teacher, for every pair of images.
    Autograd would keep them all. The gradient with respect to the cells is small and known in closed form.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        student_keys: Tensor,
        teacher: Tensor,
        teacher_keys: Tensor,
        weights: Tensor,
        key_weights: Tensor,
        temperature: float,
    ) -> Tensor:
        is_excluded = key_weights == 0
        share = key_weights.masked_fill(is_excluded, 1).log()
        share = share.masked_fill(is_excluded, torch.finfo(student.dtype).min)
        loss = student.new_zeros(())
        grad_student = torch.zeros_like(student)
        grad_keys = torch.zeros_like(student_keys) if ctx.needs_input_grad[1] else None
        rows = max(1, BLOCK // len(student_keys))
        for start in range(0, len(student), rows):
            block = slice(start, start + rows)
            log_student = F.log_softmax(student[block] @ student_keys.T / temperature + share, dim=1)
            log_teacher = F.log_softmax(teacher[block] @ teacher_keys.T / temperature + share, dim=1)
            p_teacher = log_teacher.exp()
            loss += weights[block] @ (p_teacher * (log_teacher - log_student)).sum(dim=1)
            # d KL / d logits = softmax(student) - softmax(teacher)
            grad_relation = (log_student.exp() - p_teacher) * (weights[block] / temperature)[:, None]
            grad_student[block] = grad_relation @ student_keys
            if grad_keys is not None:
                grad_keys += grad_relation.T @ student[block]
        ctx.save_for_backward(grad_student, grad_keys)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        grad_student, grad_keys = ctx.saved_tensors
        scaled_keys = None if grad_keys is None else gradient * grad_keys
        return gradient * grad_student, scaled_keys, None, None, None, None, None
