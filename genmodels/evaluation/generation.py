"""What a model makes for its evaluation, on the CPU as data sets store it, from one seed, in batches of one size."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genmodels.evaluation.images import as_stored
from genmodels.models.base import Samples, Translates, scaled

SEED = 0
BATCH_PIXELS = 2**20


@dataclass(frozen=True)
class Translations:
    """Images carried to another domain and back."""

    images: Tensor
    cycled: Tensor
    cycle_error: Tensor  # (N,), mean |cycled - source| of each image, on the scale of [-1, 1]


@torch.inference_mode()
def samples(
    model: Samples, count: int, *, resolution: int, labels: Tensor | None, progress: Callable[[int], None]
) -> Tensor:
    """`count` images, (count, C, R, R) uint8, points float32; of the classes `labels` (count,) where the model
    takes any.

    `progress` is told how many more there are.
    """
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(SEED)
    made = []
    for rows in batches(count, resolution):
        chosen = None if labels is None else labels[rows].to(device)
        images = model.sample(rows.stop - rows.start, labels=chosen, generator=generator)
        made.append(as_stored(images).cpu())
        progress(len(images))
    return torch.cat(made)


@torch.inference_mode()
def translations(
    model: Translates, sources: Tensor, *, source: str, target: str, progress: Callable[[int], None]
) -> Translations:
    """(N, C, R, R) uint8 images of the domain `source` carried to `target` and back."""
    device = device_of(model)
    made, cycled, errors = [], [], []
    for rows in batches(len(sources), sources.shape[-1]):
        images = scaled(sources[rows].to(device))
        there = model.translate(images, target)
        back = model.translate(there, source)
        made.append(as_stored(there).cpu())
        cycled.append(as_stored(back).cpu())
        errors.append((back - images).abs().mean(dim=(1, 2, 3)).cpu())
        progress(len(images))
    return Translations(torch.cat(made), torch.cat(cycled), torch.cat(errors))


def batches(count: int, resolution: int) -> Iterator[slice]:
    """The rows of one batch after the other: 256 images, or fewer where they are large."""
    size = max(1, min(256, BATCH_PIXELS // resolution**2))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def device_of(model: object) -> torch.device:
    """Where a model computes, whichever of its capabilities it is known by."""
    assert isinstance(model, nn.Module)
    return next(model.parameters()).device
