"""Differentiable sums over processes, and the images of all processes in one tensor.

DDP averages gradients over processes. For the gradient of one process with the whole batch, a loss either computes the
same value in every process from these sums, or is this process's share of the loss, times the number of processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

_Value = TypeVar("_Value")


def count_processes() -> int:
    """The number of processes that train together; 1 without a launcher."""
    launched = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if launched else 1


def process_rank() -> int:
    """This process's rank, from 0. Its N images are those of the batch from rank x N on."""
    return torch.distributed.get_rank() if count_processes() > 1 else 0


@contextmanager
def first_process_first() -> Iterator[None]:
    """The first process runs the block before the others do, so that they find at least what it found."""
    if count_processes() > 1 and process_rank() > 0:
        torch.distributed.barrier()
    yield
    if count_processes() > 1 and process_rank() == 0:
        torch.distributed.barrier()


def of_first_process(value: _Value) -> _Value:
    """The first process's value, in all of them. It must be picklable."""
    if count_processes() == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of the `x` of all processes, which have one shape. Differentiable any number of times."""
    if count_processes() == 1:
        return x
    total: Tensor = _Sum.apply(x)
    return total


def gather_images(
    x: Tensor,  # (N, ...)
) -> Tensor:
    """The `x` of all processes in the order of the batch, (processes x N, ...). Differentiable."""
    n, processes = len(x), count_processes()
    if processes == 1:
        return x
    place = slice(process_rank() * n, (process_rank() + 1) * n)
    # A sum of tensors that are zero at the other processes' places: twice the traffic of a gather, but it needs no
    # second autograd function.
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
        # The derivative of a sum over processes is a sum over processes, so WGAN-GP's double backward works too.
        return sum_over_processes(gradient)
