"""Means over the batches of all workers, for what looks at a batch as a whole: batch norm, relativistic losses."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_alone = ContextVar("_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this worker is the only one: for what it does while the others do not, such as drawing samples."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def workers() -> int:
    """How many processes train together; 1 without a process group."""
    if _alone.get():
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_workers(x: Tensor) -> Tensor:
    """Element-wise mean over the workers, which all must call it; `x` itself if there is but one.

    Its gradient is the mean of the workers' gradients, so that with the loss averaged over the workers, as the engine
    does, differentiation sees one global batch. It can be differentiated any number of times.
    """
    return _MeanOverWorkers.apply(x) if workers() > 1 else x


def of_every_worker(x: Tensor) -> Tensor:
    """`x` of each worker, which all must call it, by rank: (workers, ...). Differentiable as `mean_over_workers` is."""
    size, rank = workers(), dist.get_rank() if workers() > 1 else 0
    own = torch.arange(size, device=x.device).eq(rank).to(x.dtype)
    return size * mean_over_workers(own.view(-1, *[1] * x.dim()) * x)


class _MeanOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / workers()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return _MeanOverWorkers.apply(gradient)
