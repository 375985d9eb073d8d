"""Averaging gradients over workers: flat buckets, reduced while backward still runs.

Gradients are views into the buckets, so nothing is copied before or after the reduction. The hooks fire only
when a gradient is accumulated into `.grad`, which `torch.autograd.grad(create_graph=True)` never does: losses
with double backward (R1, WGAN-GP) need nothing special. What bounds it is the wire; the overlap hides it behind
the rest of backward.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 4 * 2**20


class GradientAverager:
    """Averages one update's gradients, and up to `scalars` loss values with them, over all workers.

    Alone it leaves gradients to autograd and the scalars as they are.

    Args:
        parameters: what the update trains.
        workers: size of the group.
        scalars: room for loss values, which ride in the first bucket and so cost no reduction of their own.
    """

    def __init__(self, parameters: list[nn.Parameter], workers: int, scalars: int):
        self.parameters = parameters
        self.workers = workers
        self.scalars = torch.zeros(scalars, device=parameters[0].device)
        if workers > 1:
            self._fill_buckets()

    def zero(self) -> None:
        """Forgets the gradients of the last step."""
        if self.workers == 1:
            for parameter in self.parameters:
                parameter.grad = None
        else:
            for bucket in self._buckets:
                bucket.zero_()
            for parameter, view in self._views:
                parameter.grad = view

    @contextmanager
    def reducing(self, values: list[Tensor]) -> Iterator[None]:
        """Around the last backward of a step: buckets go on the wire as soon as they are full.

        Afterwards the gradients and `scalars[:len(values)]` are means over the workers.
        """
        self.scalars[: len(values)] = torch.stack(values)
        if self.workers == 1:
            yield
            return
        self._missing = list(self._sizes)
        self._works: list[dist.Work | None] = [None] * len(self._buckets)
        hooks = [p.register_post_accumulate_grad_hook(self._ready) for p in self.parameters]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for bucket in range(len(self._buckets)):
            # A parameter that the loss did not reach never announces itself; its zeros are averaged all the same.
            work = self._works[bucket] or self._reduce(bucket)
            work.wait()
            self._buckets[bucket].div_(self.workers)

    def _fill_buckets(self) -> None:
        """Parameters in reverse order, about the order in which backward finishes them."""
        groups: list[list[nn.Parameter]] = [[]]
        for parameter in reversed(self.parameters):
            if sum(p.numel() * p.element_size() for p in groups[-1]) >= BUCKET_BYTES:
                groups.append([])
            groups[-1].append(parameter)
        extra = [self.scalars.numel()] + [0] * (len(groups) - 1)
        self._buckets = [
            torch.zeros(sum(p.numel() for p in group) + tail, device=self.scalars.device)
            for group, tail in zip(groups, extra, strict=True)
        ]
        self.scalars = self._buckets[0][-self.scalars.numel() :]
        self._sizes = [len(group) for group in groups]
        self._bucket_of = {p: bucket for bucket, group in enumerate(groups) for p in group}
        self._views = []
        for bucket, group in zip(self._buckets, groups, strict=True):
            offset = 0
            for parameter in group:
                # The view has the parameter's own strides, or autograd would replace it by a gradient that has.
                view = bucket[offset : offset + parameter.numel()].as_strided(
                    parameter.size(), parameter.stride(), bucket.storage_offset() + offset
                )
                self._views.append((parameter, view))
                offset += parameter.numel()

    def _ready(self, parameter: Tensor) -> None:
        bucket = self._bucket_of[parameter]  # type: ignore[index]
        self._missing[bucket] -= 1
        if self._missing[bucket] == 0:
            self._works[bucket] = self._reduce(bucket)

    def _reduce(self, bucket: int) -> dist.Work:
        work = dist.all_reduce(self._buckets[bucket], async_op=True)
        assert work is not None
        return work
