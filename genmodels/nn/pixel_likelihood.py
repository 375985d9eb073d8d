"""What a network says of a pixel's values: their probabilities, and how to draw one value after the other.

B batch, C channels, P numbers of the network for each pixel, H height, W width. A value is one of `levels` from -1
to 1.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from genmodels.nn.levels import from_levels, to_levels


class PixelLikelihood(Protocol):
    """The distribution of a pixel.

    `outputs` is P; `groups` is how many groups of P come one after the other, each told the channels before it (1: the
    network knows nothing of the pixel itself); `draws` is how many uniform numbers it takes to draw a pixel.
    """

    outputs: int
    groups: int
    draws: int

    def log_likelihood(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Parameters (B, P, H, W) and images (B, C, H, W) in [-1, 1] -> ln P of the images, (B,)."""
        ...

    def draw(self, parameters: Tensor, uniform: Tensor, known: Sequence[Tensor]) -> Tensor:
        """Parameters (B, P), uniform numbers (B, draws) and the channels so far, each (B,) -> the next one, (B,)."""
        ...


class Categorical:
    """A probability for each value, and each channel in its turn (van den Oord et al. 2016, section 3.3)."""

    def __init__(self, channels: int, levels: int):
        self.channels, self.levels = channels, levels
        self.outputs, self.groups, self.draws = channels * levels, channels, channels

    def log_likelihood(self, parameters: Tensor, images: Tensor) -> Tensor:
        logits = parameters.float().unflatten(1, (self.channels, self.levels)).transpose(1, 2)
        return -F.cross_entropy(logits, to_levels(images, self.levels), reduction="none").sum((1, 2, 3))

    def draw(self, parameters: Tensor, uniform: Tensor, known: Sequence[Tensor]) -> Tensor:
        channel = len(known)
        logits = parameters.unflatten(1, (self.channels, self.levels))[:, channel]
        return from_levels(inverse_of_cumulated(logits, uniform[:, channel]), self.levels)


class LogisticMixture:
    """Logistic distributions cut into levels and mixed, the channels' means moved by the channels before (PixelCNN++,
    Salimans et al. 2017, section 2.2)."""

    def __init__(self, channels: int, levels: int, components: int):
        self.channels, self.levels, self.components = channels, levels, components
        self.pairs = channels * (channels - 1) // 2
        self.outputs = components * (1 + 2 * channels + self.pairs)
        self.groups, self.draws = 1, 1 + channels
        self.half_width = 1 / (levels - 1)

    def log_likelihood(self, parameters: Tensor, images: Tensor) -> Tensor:
        weights, means, log_scales, slopes = self._split(parameters.float())
        channels = images.unsqueeze(2).unbind(1)
        total = weights.log_softmax(1)
        for channel, values in enumerate(channels):
            mean = self._mean(means, slopes, channels[:channel])
            total = total + self._log_probability(values, mean, log_scales[:, channel])
        return total.logsumexp(1).sum((1, 2))

    def _log_probability(self, values: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        """ln(sigmoid(a) - sigmoid(b)) for the ends a > b of a level's cell; the outermost cells reach to infinity."""
        a = (values + self.half_width - mean) * (-log_scale).exp()
        b = (values - self.half_width - mean) * (-log_scale).exp()
        below_a, above_b = F.logsigmoid(a), F.logsigmoid(-b)
        between = below_a + above_b + torch.log(-torch.expm1(b - a))
        inner = torch.where(values > 1 - self.half_width, above_b, between)
        return torch.where(values < self.half_width - 1, below_a, inner)

    def draw(self, parameters: Tensor, uniform: Tensor, known: Sequence[Tensor]) -> Tensor:
        weights, means, log_scales, slopes = self._split(parameters[..., None, None])
        component = inverse_of_cumulated(weights[:, :, 0, 0], uniform[:, 0]).view(-1, 1, 1, 1)
        channel = len(known)
        mean = self._mean(means, slopes, [value.view(-1, 1, 1, 1) for value in known])
        place = uniform[:, 1 + channel].clamp(1e-5, 1 - 1e-5).logit()
        value = mean.gather(1, component) + log_scales[:, channel].gather(1, component).exp() * place.view(-1, 1, 1, 1)
        return from_levels(to_levels(value.flatten(), self.levels), self.levels)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights (B, K, H, W), means and log-scales (B, C, K, H, W), and slopes (B, pairs, K, H, W)."""
        k, c = self.components, self.channels
        weights, means, log_scales, slopes = parameters.split((k, c * k, c * k, self.pairs * k), dim=1)
        means, log_scales, slopes = (part.unflatten(1, (-1, k)) for part in (means, log_scales, slopes))
        return weights, means, log_scales.clamp(min=-7.0), slopes.tanh()

    def _mean(self, means: Tensor, slopes: Tensor, known: Sequence[Tensor]) -> Tensor:
        """Of the channel after the known ones: (B, K, H, W)."""
        channel = len(known)
        first = channel * (channel - 1) // 2
        mean = means[:, channel]
        for before, value in enumerate(known):
            mean = mean + slopes[:, first + before] * value
        return mean


def inverse_of_cumulated(logits: Tensor, uniform: Tensor) -> Tensor:
    """The outcome, (B,) int64, at which the cumulated probabilities of (B, K) logits pass a uniform number, (B,)."""
    cumulated = logits.softmax(1).cumsum(1)[:, :-1]
    return (cumulated < uniform[:, None]).sum(1)


def pixel_likelihood(
    name: Literal["categorical", "logistic_mixture"], channels: int, *, levels: int, components: int
) -> PixelLikelihood:
    """The likelihood of that name."""
    return Categorical(channels, levels) if name == "categorical" else LogisticMixture(channels, levels, components)


def bits_per_dim(log_likelihood: Tensor, dimensions: int) -> Tensor:
    """Nats, (B,) -> mean bits per dimension, a scalar."""
    return -log_likelihood.mean() / (dimensions * math.log(2))


def mean_over_classes(log_likelihood: Callable[[Tensor], Tensor], classes: int, images: Tensor) -> Tensor:
    """ln of the mean over all classes of a likelihood of images (B, C, H, W) given labels (B,): (B,)."""
    labels = torch.arange(classes, device=images.device)
    of_classes = [log_likelihood(label.expand(len(images))) for label in labels]
    return torch.stack(of_classes).logsumexp(0) - math.log(classes)
