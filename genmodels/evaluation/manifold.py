"""Fidelity and variety apart: how much of what is made lies among the real features, and how much of the real is made.

A set is taken for the union of balls around its members, each as wide as the distance to the k-th nearest other member.
Improved precision and recall (Kynkäänniemi, Karras, Laine, Lehtinen & Aila 2019) are the shares of the made and of the
real members that lie in any ball of the other set, with k = 3. One outlier has a ball that swallows much; density and
coverage (Naeem, Oh, Uh, Choi & Yoo 2020) are sturdier, with k = 5: in how many real balls, over k, a made member lies,
and in which share of the real balls any does. Two samples of one distribution have density 1 and coverage 1 - 1 / 2^k.
"""

import torch
from torch import Tensor

from genmodels.evaluation.bootstrap import REPLICATES, Estimate, original_and_resampled

PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5


def manifold_scores(
    real: Tensor, fake: Tensor, *, generator: torch.Generator, replicates: int = REPLICATES
) -> dict[str, Estimate]:
    """`precision`, `recall`, `density` and `coverage` of features (N, D) and (M, D), at least two rows each.

    Resampling takes members and their balls away; the balls stay as wide as they are, for a set with doubles has
    neighbours at no distance.
    """
    centre = real.mean(dim=0)  # what rounding leaves of a difference of squares is least about it
    real, fake = real - centre, fake - centre
    times_real, times_fake = (original_and_resampled(len(x), replicates, generator).float() for x in (real, fake))
    distances = torch.cdist(real, fake)
    nearest_real, nearest_fake = _distances_to_neighbours(real), _distances_to_neighbours(fake)
    in_real_ball = (distances <= nearest_real[PRECISION_NEIGHBOURS][:, None]).float()
    in_fake_ball = (distances <= nearest_fake[PRECISION_NEIGHBOURS]).float()
    in_wider_ball = (distances <= nearest_real[DENSITY_NEIGHBOURS][:, None]).float()
    balls = times_real @ in_wider_ball
    scores = {
        "precision": _weighted_mean(times_real @ in_real_ball > 0, times_fake),
        "recall": _weighted_mean(times_fake @ in_fake_ball.T > 0, times_real),
        "density": _weighted_mean(balls / min(DENSITY_NEIGHBOURS, len(real) - 1), times_fake),
        "coverage": _weighted_mean(times_fake @ in_wider_ball.T > 0, times_real),
    }
    return {name: Estimate(float(values[0]), values[1:], "higher") for name, values in scores.items()}


def _distances_to_neighbours(features: Tensor) -> dict[int, Tensor]:
    """From each row (N, D) to the k-th nearest other row, (N,), for both k; to the farthest where there are fewer."""
    most = min(DENSITY_NEIGHBOURS, len(features) - 1)
    nearest = torch.cdist(features, features).topk(most + 1, largest=False).values  # itself first
    return {k: nearest[:, min(k, most)] for k in (PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS)}


def _weighted_mean(values: Tensor, times: Tensor) -> Tensor:
    """Of values (R, N) as often as each is drawn (R, N): (R,), float64."""
    return (values.double() * times).sum(dim=1) / times.sum(dim=1)
