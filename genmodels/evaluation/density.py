"""How well a model predicts held-out images: their likelihood, in nats an image and in bits a dimension.

The images are what is rounded to the model's `levels`, so likelihoods of different levels cannot be compared.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from genmodels.evaluation.generation import batches, device_of
from genmodels.models.base import ScoresDensity, scaled
from genmodels.nn.levels import to_levels

SEED = 0
CHUNK = 4096  # pixels whose frequencies are counted at a time


@runtime_checkable
class HasTighterBound(ScoresDensity, Protocol):
    """Whose `log_likelihood` is the evidence lower bound (ELBO), which it is trained by. Importance samples of each
    image's latent bound it more tightly (Burda, Grosse & Salakhutdinov 2016)."""

    def importance_bound(self, images: Tensor, samples: int, *, generator: torch.Generator) -> Tensor: ...


def nats(model: ScoresDensity, images: Tensor, *, labels: Tensor | None, progress: Callable[[int], None]) -> Tensor:
    """-ln P of each of (N, C, R, R) uint8 images, (N,) float64; given their classes, (N,), if the model takes any.

    `progress` is told how many more are done.
    """
    return _nats(model.log_likelihood, images, device_of(model), labels, progress)


def bounded_nats(model: HasTighterBound, images: Tensor, samples: int, *, progress: Callable[[int], None]) -> Tensor:
    """The same by so many importance samples of each. The ELBO exceeds the exact value by the divergence of q(z|x) from
    p(z|x), and so the tighter bound by no more than that."""
    return _nats(partial(model.importance_bound, samples=samples), images, device_of(model), None, progress)


@torch.inference_mode()
def _nats(
    score: Callable[..., Tensor],
    images: Tensor,
    device: torch.device,
    labels: Tensor | None,
    progress: Callable[[int], None],
) -> Tensor:
    generator = torch.Generator(device).manual_seed(SEED)
    found = []
    for rows in batches(len(images), images.shape[-1]):
        given = {} if labels is None else {"labels": labels[rows].to(device)}
        found.append(-score(scaled(images[rows].to(device)), generator=generator, **given).double().cpu())
        progress(len(found[-1]))
    return torch.cat(found)


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Nats of images as bits of each of their pixels and channels."""
    return nats / (dimensions * math.log(2))


def independent_pixels(train: Tensor, test: Tensor, levels: int) -> Tensor:
    """-ln P of each image of `test`, (N,) float64, if every pixel had a distribution of its own: the frequencies of its
    levels in `train`, each counted once more than seen (Laplace's rule). Both are (N, C, R, R) uint8."""
    total = torch.zeros(len(test), dtype=torch.float64)
    for seen, judged in zip(train.flatten(1).split(CHUNK, 1), test.flatten(1).split(CHUNK, 1), strict=True):
        seen, judged = (to_levels(scaled(pixels), levels).T for pixels in (seen, judged))
        counts = torch.ones(len(seen), levels).scatter_add_(1, seen, torch.ones(seen.shape))
        log_frequencies = counts.double().div(seen.shape[1] + levels).log()
        total -= log_frequencies.gather(1, judged).sum(dim=0)
    return total
