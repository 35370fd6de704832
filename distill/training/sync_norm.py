"""BatchNorm over the batch of all processes, without a wait for the device.

torch's SyncBatchNorm waits for the device up to three times a layer (it drops empty shares by a boolean mask), 78 times
a step of a ResNet-18 student, and runs on CUDA alone. Here every process has an equal share of the batch, so one gather
of means and variances forward and one sum backward are all; nothing is read back, and gloo can run it too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdcache.distill.losses.processes import count_processes, process_rank, sum_over_processes


class SyncNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training statistics are those of the whole batch. Shares must have one size.

    Same parameters, buffers and keys; in evaluation mode, and in one process, the same computation too.
    """

    def forward(
        self,
        x: Tensor,  # (N, C, H, W)
    ) -> Tensor:
        processes = count_processes()
        if not self.training or processes == 1:
            return super().forward(x)
        self._check_input_dim(x)
        mean, variance = _whole_statistics(x.detach(), processes)
        self._track(mean, variance, x.numel() // x.shape[1] * processes)
        normalised: Tensor = _Normalise.apply(x, self.weight, self.bias, mean, variance, self.eps, processes)
        return normalised

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        unbiased = variance * (count / (count - 1))  # as BatchNorm keeps it
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


def synchronise_norms(module: nn.Module) -> nn.Module:
    """The module with a SyncNorm in place of every BatchNorm2d; parameters and buffers are the same objects."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SyncNorm  # no state of its own, so nothing has to be copied or registered again
    return module


def _whole_statistics(x: Tensor, processes: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance a channel over all processes, (C,) each, at least float32."""
    exact = x if x.dtype == torch.float64 else x.float()
    variance, mean = torch.var_mean(exact, dim=(0, 2, 3), correction=0)
    # Gathered, not summed as squares: with a mean far from zero a difference of squares would lose the variance.
    shares = mean.new_zeros((processes, 2, len(mean)))
    shares[process_rank()] = torch.stack([mean, variance])
    means, variances = sum_over_processes(shares).unbind(dim=1)
    whole_mean = means.mean(dim=0)
    return whole_mean, (variances + (means - whole_mean).square()).mean(dim=0)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        processes: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.processes = eps, processes
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        # As in evaluation: dx as if the statistics were constants, and the sums of dy * normalised and of dy.
        by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        scale = (variance + ctx.eps).rsqrt()
        count = x.numel() // x.shape[1] * ctx.processes
        sums = sum_over_processes(torch.stack([by_weight, by_bias])).to(scale.dtype) / count
        # What the statistics add: - weight * scale * (mean(dy) + normalised * mean(dy * normalised)), as a x + b.
        slope = -weight * scale.square() * sums[0]
        offset = -weight * scale * sums[1] - slope * mean
        shape = (1, -1, 1, 1)
        by_x = by_x + torch.addcmul(offset.view(shape), x, slope.view(shape)).to(by_x.dtype)
        return by_x, by_weight, by_bias, None, None, None, None
