"""Spectral normalisation: layers whose weight matrix has a largest singular value of one (Miyato et al. 2018).

A power iteration follows the singular vectors: one iteration in each training forward, none in evaluation. They are
buffers, so checkpoints hold them and averages copy them; workers start with the first one's and move them alike, since
they depend on the weights alone.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpectralNorm(nn.Module):
    """Divides a weight, as a matrix (out, everything else), by its largest singular value.

    Args:
        weight: gives the shapes.
        eps: least norm that a vector is divided by.
    """

    def __init__(self, weight: Tensor, eps: float = 1e-12):
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.eps = eps
        self.left = nn.Buffer(F.normalize(torch.randn(rows), dim=0, eps=eps))
        self.right = nn.Buffer(F.normalize(torch.randn(columns), dim=0, eps=eps))

    def forward(self, weight: Tensor) -> Tensor:
        """(out, ...) -> the same, divided; in fp32 under autocast."""
        with _no_autocast(weight.device.type):
            matrix = weight.flatten(1)
            left, right = self._iterated(matrix) if self.training else (self.left.clone(), self.right.clone())
            return weight / left.dot(matrix.mv(right))

    @torch.no_grad()
    def _iterated(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors one iteration later: tensors of their own, which a backward pass may still need when the next
        forward has already moved the buffers."""
        right = F.normalize(matrix.t().mv(self.left), dim=0, eps=self.eps)
        left = F.normalize(matrix.mv(right), dim=0, eps=self.eps)
        self.left.copy_(left)
        self.right.copy_(right)
        return left, right


@torch.no_grad()
def settle_power_iterations(network: nn.Module, iterations: int = 15) -> None:
    """Brings the singular vectors of newly drawn weights near their end, so that the first norms are about right."""
    for layer in network.modules():
        if isinstance(getattr(layer, "normalized", None), SpectralNorm):
            for _ in range(iterations):
                layer.normalized(layer.weight)  # type: ignore[operator]


def _no_autocast(device: str) -> AbstractContextManager[object]:
    """A context without autocast, where there is any: torch cannot export one that does nothing."""
    casting = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if casting else nullcontext()


class SpectralConv2d(nn.Conv2d):
    """Convolution whose weight is spectrally normalised as a matrix (out, in * k * k)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
        self.normalized = SpectralNorm(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, h, w)."""
        return self._conv_forward(input, self.normalized(self.weight), self.bias)


class SpectralLinear(nn.Linear):
    """Dense layer with a spectrally normalised weight."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True):
        super().__init__(in_features, out_features, bias=bias)
        self.normalized = SpectralNorm(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_features) -> (B, out_features)."""
        return F.linear(input, self.normalized(self.weight), self.bias)


class SpectralEmbedding(nn.Embedding):
    """Table of vectors by class, spectrally normalised as a whole."""

    def __init__(self, classes: int, features: int):
        super().__init__(classes, features)
        self.normalized = SpectralNorm(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """(B,) int64 -> (B, features)."""
        return F.embedding(input, self.normalized(self.weight))
