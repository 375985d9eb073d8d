"""Batch normalisation with a scale and shift that may depend on a condition, and statistics that are measured.

Training normalises by the batch alone and keeps nothing. What evaluation normalises by, the *standing statistics*
(Brock et al. 2019, appendix B), is measured once for the weights that are to be evaluated: a running mean would belong
to weights that have moved since, and not at all to averaged ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.nn.spectral_norm import SpectralLinear


class _Normalization(nn.Module):
    """To mean 0 and variance 1 by channel."""

    def __init__(self, channels: int, group: int | None, eps: float = 1e-5):
        super().__init__()
        self.group, self.eps = group, eps
        self.mean = nn.Buffer(torch.zeros(channels))
        self.variance = nn.Buffer(torch.ones(channels))
        self.measured: list[tuple[Tensor, Tensor]] = []
        self.measuring = False

    def normalized(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> the same, times scale plus shift, (C,) each."""
        if self.measuring:
            variance, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
            self.measured.append((mean, variance))
            return F.batch_norm(x, mean, variance, scale, shift, eps=self.eps)
        if not self.training:
            return F.batch_norm(x, self.mean, self.variance, scale, shift, eps=self.eps)
        groups = x.split(self.group) if self.group else (x,)
        parts = [F.batch_norm(part, None, None, scale, shift, training=True, eps=self.eps) for part in groups]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class BatchNorm(_Normalization):
    """Batch normalisation with a scale and a shift by channel (Ioffe & Szegedy 2015).

    Args:
        channels: C.
        group: how many consecutive images it looks across in training; None looks across all. With groups that divide
            a worker's batch, the number of workers changes nothing.
    """

    def __init__(self, channels: int, *, group: int | None = None):
        super().__init__(channels, group)
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> the same. It takes a condition, as the others do, and ignores it."""
        return self.normalized(x, self.scale, self.shift)


class ConditionalBatchNorm(_Normalization):
    """Batch normalisation with a scale and a shift by class, from 1 and 0 on (Dumoulin et al. 2017)."""

    def __init__(self, channels: int, classes: int, *, group: int | None = None):
        super().__init__(channels, group)
        self.scale = nn.Parameter(torch.ones(classes, channels))
        self.shift = nn.Parameter(torch.zeros(classes, channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W) of the classes `condition`, (B,) int64 -> the same."""
        return modulated(self.normalized(x), self.scale[condition], self.shift[condition])


class ProjectedBatchNorm(_Normalization):
    """Batch normalisation with a scale, about 1, and a shift that are linear in a vector (Brock et al. 2019)."""

    def __init__(self, channels: int, features: int, *, group: int | None = None):
        super().__init__(channels, group)
        self.scale = SpectralLinear(features, channels, bias=False)
        self.shift = SpectralLinear(features, channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W) and (B, features) -> (B, C, H, W)."""
        return modulated(self.normalized(x), 1 + self.scale(condition), self.shift(condition))


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(B, C, H, W) times scale plus shift, (B, C) each."""
    return torch.addcmul(shift[..., None, None].to(x.dtype), x, scale[..., None, None].to(x.dtype))


@contextmanager
def measuring_standing_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, the network's forwards, whatever its mode, normalise by their batch; the means of their statistics are
    what evaluation normalises by afterwards."""
    norms = [module for module in network.modules() if isinstance(module, _Normalization)]
    for norm in norms:
        norm.measuring = True
    try:
        yield
        for norm in norms:
            means, variances = zip(*norm.measured, strict=True)
            norm.mean.copy_(torch.stack(means).mean(0))
            norm.variance.copy_(torch.stack(variances).mean(0))
    finally:
        for norm in norms:
            norm.measuring, norm.measured = False, []
