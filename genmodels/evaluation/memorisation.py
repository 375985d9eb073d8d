"""Whether a model repeats its training images: how near the nearest of them is to what it makes (Goodfellow et al.
2014, figure 2), beside how near it is to images held out, which nobody can have copied.

Distances are those of the pixels on the level of the pyramid with 16 pixels a side, or the next smaller one: a copy is
one there too, noise is averaged away, and all training images can be gone through.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genmodels.data.dataset import Table
from genmodels.data.images import pyramid, pyramid_resolutions
from genmodels.evaluation.bootstrap import REPLICATES, Estimate, original_and_resampled

SIDE = 16
MOST_IMAGES = 1_000
BLOCK_ROWS = 8_192


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of each of N images."""

    rows: Tensor  # (N,) int64, of the training table
    distances: Tensor  # (N,), root of the mean squared difference of the pixels, in levels of 255, or of coordinates


def side(resolution: int) -> int:
    """Of the images that are compared."""
    return max((size for size in pyramid_resolutions(resolution) if size <= SIDE), default=resolution)


def nearest_training_images(images: Tensor, train: Table) -> Nearest:
    """Of (N, C, R, R) images, among all rows of a training table of images of that resolution."""
    column = f"image@{side(images.shape[-1])}"
    judged = _pixels(pyramid(images.numpy())[column])
    nearest, rows = torch.full((len(images),), torch.inf), torch.zeros(len(images), dtype=torch.int64)
    for start in range(0, train.rows, BLOCK_ROWS):
        block = _pixels(train.read(column, np.arange(start, min(start + BLOCK_ROWS, train.rows))))
        distances, found = torch.cdist(judged, block).min(dim=1)
        nearer = distances < nearest
        nearest, rows = torch.where(nearer, distances, nearest), torch.where(nearer, found + start, rows)
    exact = judged - _pixels(train.read(column, rows.numpy()))  # cdist is off by rounding where nothing lies between
    return Nearest(rows, exact.square().mean(dim=1).sqrt())


def distance_ratio(
    made: Tensor, held_out: Tensor, *, generator: torch.Generator, replicates: int = REPLICATES
) -> Estimate:
    """The mean distance of images made to their nearest training images, (N,), over that of images held out, (M,)."""
    means = []
    for distances in (made.double(), held_out.double()):
        times = original_and_resampled(len(distances), replicates, generator)
        means.append(times @ distances / len(distances))
    ratios = means[0] / means[1].clamp_min(1e-12)
    note = "1: as far from training images as those held out; 0: copies"
    return Estimate(float(ratios[0]), ratios[1:], "higher", note)


def _pixels(images: np.ndarray) -> Tensor:
    """(N, D): float32 of bytes, float64 of points, whose neighbours are nearer."""
    pixels = torch.from_numpy(images).flatten(1)
    return pixels.double() if pixels.is_floating_point() else pixels.float()
