"""The real draws of the engine, for calling a model's losses by hand."""

import torch

from genmodels.nn.augmentation import Augmentation
from genmodels.training.randomness import Draws
from genmodels.training.workers import Workers

NOT_AUGMENTED = Augmentation((), target=None, ramp_images=1)


def draws(
    step: int = 0, workers: Workers | None = None, micros: int = 1, augmentation: Augmentation = NOT_AUGMENTED
) -> Draws:
    """Of the first micro-batch."""
    settings = {"images_in_stage": 0, "workers": workers or Workers(), "device": torch.device("cpu"), "micros": micros}
    return Draws(seed=0, step=step, augmentation=augmentation, **settings)


def as_worker(rank: int, everyones: torch.Tensor) -> Workers:
    """One of two workers, whose `gather` returns the tensor of both."""
    workers = Workers()
    workers.rank, workers.size = rank, 2
    workers.gather = lambda tensor: everyones  # type: ignore[method-assign]
    return workers
