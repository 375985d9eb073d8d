"""The squared maximum mean discrepancy of two sets (Gretton et al. 2012, eq. 3): between features with the kernel
(x.y / D + 1)^3 it is the kernel inception distance (Binkowski, Sutherland, Arbel & Gretton 2018).

Unlike the Fréchet distance it is unbiased at every number of images; near zero it may be negative. All pairs of images
are used, so there is no choice of subsets; the interval comes from resampling images.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from genmodels.evaluation.bootstrap import REPLICATES, Estimate, original_and_resampled

BLOCK_ROWS = 1024
PERMUTATIONS = 500
Kernel = Callable[[Tensor, Tensor], Tensor]  # rows (N, D) and (M, D) -> of all pairs, (N, M)


def kid(real: Tensor, fake: Tensor, *, generator: torch.Generator, replicates: int = REPLICATES) -> Estimate:
    """The distance between two sets of features, (N, D) and (M, D), with at least two rows each."""
    return squared_mmd(real, fake, polynomial_kernel, generator=generator, replicates=replicates)


def prior_mmd(prior: Tensor, codes: Tensor, *, generator: torch.Generator, replicates: int = REPLICATES) -> Estimate:
    """The squared discrepancy between draws from a prior and codes, (N, D) and (M, D), with a Gaussian kernel as
    wide as the median distance between draws. Its note says how often it is as large if codes follow the prior; an
    estimate without replicates has none."""
    width = float(torch.pdist(prior[:BLOCK_ROWS]).median())
    kernel = lambda x, y: torch.exp(torch.cdist(x, y).square() / (-2 * width**2))  # noqa: E731
    estimate = squared_mmd(prior, codes, kernel, generator=generator, replicates=replicates)
    if not replicates:
        return estimate
    p = permutation_p_value(prior, codes, kernel, generator=generator)
    return replace(estimate, note=f"p = {p:.2g} if codes follow the prior")


def permutation_p_value(
    x: Tensor, y: Tensor, kernel: Kernel, *, generator: torch.Generator, permutations: int = PERMUTATIONS
) -> float:
    """How often the squared discrepancy of rows that are dealt out anew to two sets, as large as (N, D) and (M, D), is
    no less than theirs: a p-value of their having one distribution. They count as a deal themselves, or it would
    sometimes be 0, which is too small (Phipson & Smyth 2010)."""
    pooled, n, m = torch.cat((x, y)), len(x), len(y)
    dealt = torch.rand(1 + permutations, n + m, generator=generator).argsort(dim=1)
    dealt[0] = torch.arange(n + m)
    first = (dealt < n).double()  # of each deal, which rows are in the first set
    within_first, from_first, everything = torch.zeros(3, 1 + permutations, dtype=torch.float64)
    for start in range(0, n + m, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        values = kernel(pooled[rows].double(), pooled.double())
        values.diagonal(start).zero_()
        within_first += ((first[:, rows] @ values) * first).sum(dim=1)
        from_first += first[:, rows] @ values.sum(dim=1)
        everything += values.sum()
    between = from_first - within_first
    within_second = everything - within_first - 2 * between
    squared = within_first / (n * (n - 1)) + within_second / (m * (m - 1)) - 2 * between / (n * m)
    return float((squared >= squared[0]).double().mean())


def squared_mmd(
    real: Tensor, fake: Tensor, kernel: Kernel, *, generator: torch.Generator, replicates: int = REPLICATES
) -> Estimate:
    """The unbiased estimate from all pairs of rows, (N, D) and (M, D), of which there are at least two each."""
    counts_real = original_and_resampled(len(real), replicates, generator)
    counts_fake = original_and_resampled(len(fake), replicates, generator)
    squared = (
        _mean_kernel(real, real, counts_real, counts_real, kernel)
        + _mean_kernel(fake, fake, counts_fake, counts_fake, kernel)
        - 2 * _mean_kernel(real, fake, counts_real, counts_fake, kernel)
    )
    return Estimate(float(squared[0]), squared[1:])


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / D + 1)^3 of all pairs of rows, (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_kernel(x: Tensor, y: Tensor, counts_x: Tensor, counts_y: Tensor, kernel: Kernel) -> Tensor:
    """Mean kernel of the pairs, (1 + replicates,), weighted by how often both are drawn; no image with itself."""
    total = torch.zeros(len(counts_x), dtype=torch.float64)
    for start in range(0, len(x), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        values = kernel(x[rows].double(), y.double())
        if x is y:
            values.diagonal(start).zero_()
        total += ((counts_x[:, rows] @ values) * counts_y).sum(dim=1)
    pairs = counts_x.sum(dim=1) * counts_y.sum(dim=1)
    return total / (pairs - (counts_x * counts_y).sum(dim=1) if x is y else pairs)
