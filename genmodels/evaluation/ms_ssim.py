"""Multi-scale structural similarity as a measure of diversity (Odena et al. 2017).

The mean similarity of random pairs of images: a generator that repeats itself scores higher than the real images do.
"""

import torch
from torch import Tensor

from genmodels.evaluation.bootstrap import REPLICATES, Estimate, sample_mean
from genmodels.evaluation.images import as_pixels
from genmodels.nn.structural_similarity import ms_ssim

BATCH_PAIRS = 256


def diversity(images: Tensor, *, generator: torch.Generator, replicates: int = REPLICATES) -> Estimate:
    """The mean similarity of the pairs (first, second), (third, fourth), ... of (N, C, R, R) images in random order."""
    images = images[torch.randperm(len(images), generator=generator)]
    pairs = len(images) // 2
    batches = zip(images[: 2 * pairs : 2].split(BATCH_PAIRS), images[1 : 2 * pairs : 2].split(BATCH_PAIRS), strict=True)
    similarities = [ms_ssim(as_pixels(x), as_pixels(y)) for x, y in batches]
    return sample_mean(torch.cat(similarities), replicates, generator)
