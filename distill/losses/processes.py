"""What several processes share of one batch: sums over all of it, and every process's images in one tensor.

DDP averages gradients over processes. A loss that every process computes from the sums of all, or its own share of a
loss times the number of processes, then has the gradient of one process that saw the whole batch: the backward pass of
a sum over processes is a sum over processes.
"""

import torch
import torch.distributed
from torch import Tensor


def count_processes() -> int:
    """Processes that train together; 1 where nothing was launched."""
    launched = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if launched else 1


def process_rank() -> int:
    """This process's place among them. Its images are those of the batch from rank x N on."""
    return torch.distributed.get_rank() if count_processes() > 1 else 0


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of every process's `x`, of one shape; differentiable as often as one likes."""
    if count_processes() == 1:
        return x
    total: Tensor = _Sum.apply(x)
    return total


def gather_images(
    x: Tensor,  # (N, ...)
) -> Tensor:
    """Every process's `x` in the order of the batch, (processes x N, ...); differentiable."""
    n, processes = len(x), count_processes()
    if processes == 1:
        return x
    place = slice(process_rank() * n, (process_rank() + 1) * n)
    # A sum of what is zero elsewhere: twice the traffic of a gather, and no second kind of backward pass.
    return sum_over_processes(x.new_zeros((processes * n, *x.shape[1:])).index_copy(0, _places(place, x), x))


def _places(place: slice, like: Tensor) -> Tensor:
    return torch.arange(place.start, place.stop, device=like.device)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return sum_over_processes(gradient)
