"""The real draws of the engine, for calling a model's losses by hand."""

import torch

from genmodels.training.randomness import Draws
from genmodels.training.workers import Workers


def draws(step: int = 0, workers: Workers | None = None) -> Draws:
    return Draws(seed=0, step=step, images_in_stage=0, workers=workers or Workers(), device=torch.device("cpu"))


def as_worker(rank: int, everyones: torch.Tensor) -> Workers:
    """One of two workers, whose `gather` returns the tensor of both."""
    workers = Workers()
    workers.rank, workers.size = rank, 2
    workers.gather = lambda tensor: everyones  # type: ignore[method-assign]
    return workers
