"""Fréchet distance between Gaussians fitted to features (Heusel et al. 2017; Dowson & Landau 1982).

|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2). The last trace needs no matrix square root: it is the sum of the
roots of the eigenvalues of L^T S1 L with S2 = L L^T, and, with S = X^T X of centred and scaled rows X, the sum of the
singular values of X1 X2^T, which is the smaller problem where there are fewer images than features.

float64 throughout: at 2048 features float32 is off by 0.05. What bounds it is the eigenvalue problem.
"""

import torch
from torch import Tensor

from genmodels.evaluation.bootstrap import REPLICATES, Estimate, resample


def fid(
    real: Tensor, fake: Tensor, *, generator: torch.Generator, replicates: int = REPLICATES, paired: bool = False
) -> Estimate:
    """The distance between two sets of features, (N, D) and (M, D), any float type, with at least two rows each.

    Rows that are `paired`, those of images and of their reconstructions, are resampled together.
    """
    real, fake = real.double(), fake.double()
    counts_real = resample(len(real), replicates, generator).long()
    counts_fake = counts_real if paired else resample(len(fake), replicates, generator).long()
    resampled = [
        feature_distance(real.repeat_interleave(drawn_real, dim=0), fake.repeat_interleave(drawn_fake, dim=0))
        for drawn_real, drawn_fake in zip(counts_real, counts_fake, strict=True)
    ]
    return Estimate(feature_distance(real, fake), torch.tensor(resampled))


def feature_distance(first: Tensor, second: Tensor) -> float:
    """The Fréchet distance of two sets of features, (N, D) and (M, D) in float64."""
    rows_first, rows_second = _deviations(first), _deviations(second)
    means = first.mean(dim=0), second.mean(dim=0)
    if min(len(first), len(second)) >= first.shape[1]:
        return frechet_distance(means[0], rows_first.T @ rows_first, means[1], rows_second.T @ rows_second)
    traces = rows_first.square().sum() + rows_second.square().sum()
    root_trace = torch.linalg.svdvals(rows_first @ rows_second.T).sum()
    return _assembled(means, traces, root_trace)


def frechet_distance(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float:
    """The distance between two Gaussians: means (D,), covariances (D, D), float64. Covariances may be singular."""
    factor = _factor(covariance_2)
    eigenvalues = torch.linalg.eigvalsh(factor.T @ covariance_1 @ factor)
    traces = covariance_1.trace() + covariance_2.trace()
    return _assembled((mean_1, mean_2), traces, eigenvalues.clamp_min(0).sqrt().sum())


def _assembled(means: tuple[Tensor, Tensor], traces: Tensor, root_trace: Tensor) -> float:
    """Not below zero, where rounding may leave the distance of a set to itself."""
    return max(0.0, float((means[0] - means[1]).square().sum() + traces - 2 * root_trace))


def _deviations(features: Tensor) -> Tensor:
    """Rows whose X^T X is the covariance, (N, D)."""
    return (features - features.mean(dim=0)) / (len(features) - 1) ** 0.5


def _factor(covariance: Tensor) -> Tensor:
    """L with L L^T = covariance: Cholesky's, or by eigenvectors where a direction has no variance."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return factor
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    return eigenvectors * eigenvalues.clamp_min(0).sqrt()
