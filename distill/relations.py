"""Relations of cells to other cells as distributions, and their divergence, without keeping the distributions.

A map of 64x128 cells has 8192^2 relations to another one: 268 MB in float32, for student and teacher, for every pair of
images. The gradient of the divergence is known in closed form and small, so it is taken at once, block by block, and
the relations are dropped.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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
