"""Cross-entropy at the labels' size without the enlarged logits.

Enlarging (8, 19, 64, 128) logits to 512x1024 writes 319 MB in float32, which softmax, loss and their backward passes each
read again; on CUDA the backward pass of bilinear enlarging also adds up its gradient by atomics, in an order that no two
runs share. Bilinear enlarging is linear, A_h X A_w^T with two constant matrices, and the gradient of the loss is known
where the loss is: so a band of rows is enlarged, its loss and gradient are taken, and it is dropped.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdcache.cache.images.classes import IGNORE

# Logits enlarged at a time. A core's cache holds 4 MB of them four times over (two thirds of the time of doing all at
# once); a GPU wants few launches more than it wants its cache.
BANDS = {"cpu": 2**20, "cuda": 2**24}


def enlarged_cross_entropy(
    logits: Tensor,  # (N, C, h, w) float32 or float64
    labels: Tensor,  # (N, H, W) uint8 or int64; IGNORE counts for nothing
    align_corners: bool,
) -> Tensor:
    """Sum over labelled pixels of the cross-entropy of `logits` enlarged to the labels' size, a scalar.

    As F.cross_entropy(F.interpolate(logits, (H, W), mode="bilinear"), labels, ignore_index=IGNORE, reduction="sum"), to
    rounding; differentiable once.
    """
    loss: Tensor = _EnlargedCrossEntropy.apply(logits, labels, align_corners)
    return loss


def enlarging_matrix(like: Tensor, source: int, target: int, align_corners: bool) -> Tensor:
    """(target, source) of `like`'s type and device: each row the weights of the source cells of one pixel."""
    cells = torch.eye(source, dtype=like.dtype, device=like.device)
    return F.interpolate(cells[None], size=target, mode="linear", align_corners=align_corners)[0].T


class _EnlargedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
        (classes, height, width), target = logits.shape[1:], labels.shape[1:]
        rows = enlarging_matrix(logits, height, target[0], align_corners)
        columns = enlarging_matrix(logits, width, target[1], align_corners)
        loss, gradient = logits.new_zeros(()), torch.zeros_like(logits)
        at_once = BANDS.get(logits.device.type, BANDS["cuda"])
        band = max(1, at_once // (len(logits) * classes * target[1]))
        for start in range(0, target[0], band):
            down = rows[start : start + band]
            enlarged = down @ logits @ columns.T  # (N, C, band, W)
            of_band, by_enlarged = _loss_and_gradient(enlarged, labels[:, start : start + band].long())
            loss += of_band
            gradient += down.T @ (by_enlarged @ columns)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return by_loss * gradient, None, None


def _loss_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of (N, C, R, W) logits, and softmax minus one-hot, zero for pixels without a label."""
    log_p = F.log_softmax(logits, dim=1)
    labelled = (labels != IGNORE)[:, None]
    index = labels[:, None].where(labelled, 0)
    loss = -(log_p.gather(1, index) * labelled).sum()
    # exp in place: log_p is not needed again, and a band should stay in the device's cache.
    gradient = log_p.exp_() * labelled
    gradient.scatter_add_(1, index, -labelled.to(gradient.dtype))  # one index a pixel: no two writes meet
    return loss, gradient
