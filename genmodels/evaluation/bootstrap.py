"""How sure a score is: the bootstrap over images (Efron & Tibshirani 1993).

A distance between samples is biased upwards by their finite size, and a resampled one twice, so percentiles of the
replicates would lie beside the score. The interval is therefore the standard one, score +- 1.96 standard errors,
for which 50 replicates are enough (section 6.4). Where a distance is hardly above its floor it is a little too wide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

REPLICATES = 50


@dataclass(frozen=True)
class Estimate:
    """A score with its bootstrap replicates, which way is better, and what must be known to read it."""

    value: float
    replicates: Tensor
    better: Literal["lower", "higher"] = "lower"
    note: str = ""

    @property
    def standard_error(self) -> float:
        """Standard deviation of the replicates."""
        return float(self.replicates.double().std())

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.value - 1.96 * self.standard_error

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.value + 1.96 * self.standard_error


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean score. Replicates are averaged one by one, so scores of the same resampled images stay correlated."""
    return Estimate(
        sum(estimate.value for estimate in estimates) / len(estimates),
        torch.stack([estimate.replicates for estimate in estimates]).mean(dim=0),
    )


def resample(images: int, replicates: int, generator: torch.Generator) -> Tensor:
    """How often each image is drawn when `images` are drawn with replacement: (replicates, images), float64."""
    drawn = torch.randint(images, (replicates, images), generator=generator)
    once = torch.ones(replicates, images, dtype=torch.float64)
    return torch.zeros_like(once).scatter_add_(1, drawn, once)


def original_and_resampled(images: int, replicates: int, generator: torch.Generator) -> Tensor:
    """The same with a row before the others in which each image is drawn once: (1 + replicates, images)."""
    counts = resample(images, replicates, generator)
    return torch.cat([counts.new_ones(1, images), counts])


def sample_mean(values: Tensor, replicates: int, generator: torch.Generator) -> Estimate:
    """The mean of one value (N,) for each image."""
    values = values.double()
    return Estimate(float(values.mean()), resample(len(values), replicates, generator) @ values / len(values))
