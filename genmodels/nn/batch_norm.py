"""Batch normalisation whose scale and shift depend on a condition, and the statistics that evaluation uses.

Evaluation normalises by *standing statistics* (Brock et al. 2019, appendix B), measured for the very weights that are
evaluated: the running mean of training belongs to weights that have moved since, and not at all to averaged ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from genmodels.nn.distributed import alone
from genmodels.nn.normalization import BatchNorm
from genmodels.nn.spectral_norm import SpectralLinear


class UnconditionalBatchNorm(BatchNorm):
    """Batch normalisation that may stand where a conditional one does: it takes a condition and ignores it."""

    def forward(self, input: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> the same."""
        return super().forward(input)


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation with a scale and a shift by class, from 1 and 0 on (Dumoulin et al. 2017)."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.norm = BatchNorm(channels, affine=False)
        self.scale = nn.Parameter(torch.ones(classes, channels))
        self.shift = nn.Parameter(torch.zeros(classes, channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W) of the classes `condition`, (B,) int64 -> the same."""
        return modulated(self.norm(x), self.scale[condition], self.shift[condition])


class ProjectedBatchNorm(nn.Module):
    """Batch normalisation with a scale, about 1, and a shift that are linear in a vector (Brock et al. 2019)."""

    def __init__(self, channels: int, features: int):
        super().__init__()
        self.norm = BatchNorm(channels, affine=False)
        self.scale = SpectralLinear(features, channels, bias=False)
        self.shift = SpectralLinear(features, channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W) and (B, features) -> (B, C, H, W)."""
        return modulated(self.norm(x), 1 + self.scale(condition), self.shift(condition))


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(B, C, H, W) times scale plus shift, (B, C) each."""
    return torch.addcmul(shift[..., None, None].to(x.dtype), x, scale[..., None, None].to(x.dtype))


def has_batch_norms(network: nn.Module) -> bool:
    """Whether it looks at a batch as a whole."""
    return bool(_norms(network))


@contextmanager
def measuring_standing_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, batch norms normalise by their batch, that of this worker alone, whatever the mode of the network; the
    means of these statistics over all batches are what evaluation normalises by from then on."""
    for norm in _norms(network):
        norm.reset_running_stats()
    with _normalising_by_batch(network, momentum=None):  # which makes torch take the plain mean
        yield


@contextmanager
def normalising_by_batch(network: nn.Module) -> Iterator[None]:
    """Inside, batch norms normalise by their batch, that of this worker alone, and remember nothing of it."""
    with _normalising_by_batch(network, momentum=0.0):
        yield


@contextmanager
def _normalising_by_batch(network: nn.Module, momentum: float | None) -> Iterator[None]:
    norms = _norms(network)
    before = [(norm.training, norm.momentum) for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, momentum
    try:
        with alone():
            yield
    finally:
        for norm, (training, norm_momentum) in zip(norms, before, strict=True):
            norm.training, norm.momentum = training, norm_momentum


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
