"""The data-parallel group: a thin layer over `torch.distributed` that also works alone."""

import torch
import torch.distributed as dist
from torch import Tensor


class Workers:
    """This process's place among the workers, and the few collectives that models and the engine need.

    Without an initialised process group it is a group of one, and every collective is the identity.
    """

    def __init__(self) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.size = dist.get_world_size() if grouped else 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Element-wise sum over the workers."""
        if self.size > 1:
            tensor = tensor.detach().clone()
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The workers' tensors concatenated along the first dimension, in rank order."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.detach().contiguous())
        return torch.cat(parts)

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Overwrites the tensors with those of the first worker."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)
