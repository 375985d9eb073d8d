"""How many of a data set's classes are among samples, and how far their frequencies are from the real ones, as the
modes of stacked MNIST are counted (Metz, Poole, Pfau & Sohl-Dickstein, ICLR 2017; Srivastava et al., NIPS 2017).

Both depend on how many samples there are: of K equally frequent classes N real images lack K (1 - 1/K)^N, and their
divergence is about (K - 1) / 2N instead of 0.
"""

import torch
from torch import Tensor

from genmodels.evaluation.bootstrap import Estimate, original_and_resampled


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
