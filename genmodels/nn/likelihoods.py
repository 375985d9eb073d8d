"""Distributions of pixels that have `levels` values: log-probabilities in nats, which add up to one over the levels."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from genmodels.nn.levels import from_levels

Continuous = Literal["gaussian", "logistic"]


def bernoulli(pixels: Tensor, logits: Tensor) -> Tensor:
    """ln P of pixels that are 0 or 1, in the broadcast shape."""
    return logsigmoid(torch.where(pixels > 0, logits, -logits))


def discretised(distribution: Continuous, pixels: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """ln P of the levels 0 .. levels - 1, in the broadcast shape: what the distribution of that mean and scale has
    within half a step of the level's place in [-1, 1]; the outermost levels have the tails (Salimans et al. 2017, eq.
    2). Exact wherever the mean lies, for no difference of nearly equal numbers is taken."""
    offset, half_step, inverse_scale = from_levels(pixels, levels) - mean, 1 / (levels - 1), torch.exp(-log_scale)
    above, below = (offset + half_step) * inverse_scale, (offset - half_step) * inverse_scale
    log_cdf = logsigmoid if distribution == "logistic" else torch.special.log_ndtr
    within = _log_logistic(above, below) if distribution == "logistic" else _log_gaussian(above, below)
    return torch.where(pixels == 0, log_cdf(above), torch.where(pixels == levels - 1, log_cdf(-below), within))


def _log_logistic(above: Tensor, below: Tensor) -> Tensor:
    """ln(s(above) - s(below)), by s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) of the sigmoid s."""
    return logsigmoid(above) + logsigmoid(-below) + torch.log(-torch.expm1(below - above))


def _log_gaussian(above: Tensor, below: Tensor) -> Tensor:
    """The same of the normal distribution, in the tail on the left, where logarithms keep small numbers apart."""
    right = above + below > 0
    above, below = torch.where(right, -below, above), torch.where(right, -above, below)
    log_above, log_below = torch.special.log_ndtr(above), torch.special.log_ndtr(below)
    return log_above + torch.log(-torch.expm1(log_below - log_above))
