"""How many of a data set's classes are among samples, and how far their frequencies are from the real ones, as the
modes of stacked MNIST are counted (Metz, Poole, Pfau & Sohl-Dickstein, ICLR 2017; Srivastava et al., NIPS 2017).

Both depend on how many samples there are: of K equally frequent classes N real images lack K (1 - 1/K)^N, and their
divergence is about (K - 1) / 2N instead of 0.

Where the classes are the components of a mixture of Gaussians in the plane, a sample is of high quality if it lies
within three standard deviations of the nearest centre, and a mode is found if any such sample is the centre's
(Srivastava et al. 2017, section 4.1). Of samples of the mixture itself 1 - exp(-9 / 2) = 98.9 % are of high quality.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genmodels.evaluation.bootstrap import Estimate, original_and_resampled

DEVIATIONS = 3


@dataclass(frozen=True)
class Mixture:
    """The components of a mixture of round Gaussians: centres (K, D) and standard deviations (K,), float64."""

    centres: Tensor
    deviations: Tensor


def mixture_of(points: Tensor, labels: Tensor) -> Mixture:
    """The mixture that points (N, D) are drawn from, of whose components the labels (N,) are those from 0 on."""
    components = [points[labels == label].double() for label in labels.unique()]
    centres = torch.stack([component.mean(dim=0) for component in components])
    deviations = torch.stack([component.var(dim=0).mean().sqrt() for component in components])
    return Mixture(centres, deviations)


def mixture_scores(
    points: Tensor, mixture: Mixture, *, generator: torch.Generator, replicates: int
) -> dict[str, Estimate]:
    """The components that are found by points (N, D), and the share of the points that are of high quality."""
    distances, nearest = torch.cdist(points.double(), mixture.centres).min(dim=1)
    good = distances <= DEVIATIONS * mixture.deviations[nearest]
    times = original_and_resampled(len(points), replicates, generator)[:, good]
    found = times.new_zeros(len(times), len(mixture.centres)).index_add_(1, nearest[good], times)
    modes, share = (found > 0).sum(dim=1).double(), times.sum(dim=1) / len(points)
    samples = f"{len(points):,} samples"
    return {
        "modes": Estimate(float(modes[0]), modes[1:], "higher", f"of {len(mixture.centres)}, in {samples}"),
        "high_quality": Estimate(float(share[0]), share[1:], "higher", f"within {DEVIATIONS} deviations of a centre"),
    }


def mode_scores(
    classes: Tensor, frequencies: Tensor, *, generator: torch.Generator, replicates: int
) -> dict[str, Estimate]:
    """The classes found among samples, and the Kullback-Leibler divergence of their histogram from the real one.

    Args:
        classes: of the samples, (N,) int64, as something reads them.
        frequencies: of the K real classes, (K,), in any unit; the divergence is infinite where a sample is of one that
            has none.
    """
    times = original_and_resampled(len(classes), replicates, generator)
    found = times.new_zeros(len(times), len(frequencies)).index_add_(1, classes, times)
    modes = (found > 0).sum(dim=1).double()
    share, real = found / len(classes), frequencies.double() / frequencies.sum()
    divergence = (torch.special.xlogy(share, share) - torch.special.xlogy(share, real)).sum(dim=1)
    samples = f"{len(classes):,} samples"
    return {
        "modes": Estimate(float(modes[0]), modes[1:], "higher", f"of {len(frequencies):,}, in {samples}"),
        "mode_divergence": Estimate(float(divergence[0]), divergence[1:], note=f"nats, of {samples}"),
    }
