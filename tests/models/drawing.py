"""The real draws of the engine, for calling a model's losses by hand."""

import torch

from genmodels.nn.augmentation import Augmentation
from genmodels.training.randomness import Draws
from genmodels.training.workers import Workers

NOT_AUGMENTED = Augmentation((), target=None, ramp_images=1)


def draws(
    step: int = 0,
    workers: Workers | None = None,
    micros: int = 1,
    augmentation: Augmentation = NOT_AUGMENTED,
    micro: int = 0,
) -> Draws:
    """Of the first micro-batch if no other is asked for."""
    place = {"workers": workers or Workers(), "device": torch.device("cpu"), "micro": micro, "micros": micros}
    return Draws(seed=0, step=step, images_in_stage=0, augmentation=augmentation, **place)


def as_worker(rank: int, *everyones: torch.Tensor) -> Workers:
    """One of two workers, whose calls of `gather` return these tensors of both, of which it has its half."""
    workers, answers = Workers(), iter(everyones)
    workers.rank, workers.size = rank, 2

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        both = next(answers)
        assert torch.equal(tensor, both.chunk(2)[rank])
        return both

    workers.gather = gather  # type: ignore[method-assign]
    return workers
