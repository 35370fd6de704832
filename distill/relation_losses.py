"""Terms of how cells relate to others: of their image (SKD), of their class (IFVD), of the batch (CIRKD)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.cache.classes import IGNORE
from kdcache.distill.cells import max_pool
from kdcache.distill.losses import LABELS, Pairs, Term
from kdcache.distill.processes import count_processes, gather_images
from kdcache.distill.region import LEAST, Region
from kdcache.distill.relations import relation_divergence


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
