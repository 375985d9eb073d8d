"""Residual blocks of generators and discriminators, and what stands behind the last of them (Gulrajani et al. 2017;
Miyato et al. 2018, appendix B.4; Brock et al. 2019, appendix B)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.nn.attention import SelfAttention
from genmodels.nn.convolution import conv2d, downsampled_conv2d, upsampled_conv2d
from genmodels.nn.spectral_norm import SpectralEmbedding, SpectralLinear, SpectralNorm

Resample = Literal["up", "down"]


class ResampledConv2d(nn.Conv2d):
    """Convolution of 1x1 or 3x3 with stride 1 and `same` padding, and a change of resolution on that side of it where
    it costs least: nearest x2 before or the average of 2x2 behind, which is where a 1x1 convolution commutes with both.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, resample: Resample | None, spectral: bool
    ):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.normalized = SpectralNorm(self.weight) if spectral else nn.Identity()
        self.resample = resample

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, h, w)."""
        weight, wide = self.normalized(self.weight), self.kernel_size[0] > 1
        if self.resample == "up":
            return upsampled_conv2d(input, weight, self.bias) if wide else upsample(self._same(input, weight))
        if self.resample == "down":
            return downsampled_conv2d(input, weight, self.bias) if wide else self._same(F.avg_pool2d(input, 2), weight)
        return self._same(input, weight)

    def _same(self, x: Tensor, weight: Tensor) -> Tensor:
        return conv2d(x, weight, self.bias, padding=self.kernel_size[0] // 2)


def upsample(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), each pixel four times."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class GeneratorBlock(nn.Module):
    """Norm, ReLU, nearest x2, convolution, norm, ReLU, convolution; plus x2 and a 1x1 convolution of the input.

    Args:
        norm: makes the normalisation of so many channels; it is called with what `forward` is given as `condition`.
        spectral: whether the convolutions are spectrally normalised.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, norm: Callable[[int], nn.Module], spectral: bool = False
    ):
        super().__init__()
        self.norm1, self.norm2 = norm(in_channels), norm(out_channels)
        self.conv1 = ResampledConv2d(in_channels, out_channels, 3, resample="up", spectral=spectral)
        self.conv2 = ResampledConv2d(out_channels, out_channels, 3, resample=None, spectral=spectral)
        self.shortcut = ResampledConv2d(in_channels, out_channels, 1, resample="up", spectral=spectral)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, 2H, 2W)."""
        residual = self.conv1(F.relu(self.norm1(x, condition)))
        return self.conv2(F.relu(self.norm2(residual, condition))) + self.shortcut(x)


class DiscriminatorBlock(nn.Module):
    """ReLU, convolution, ReLU, convolution, the average of 2x2 if `down`; plus the input, convolved 1x1 where shapes
    differ. All of it spectrally normalised.

    Args:
        first: whether the input is an image, which takes no ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, *, down: bool, first: bool = False):
        super().__init__()
        resample: Resample | None = "down" if down else None
        self.first = first
        self.conv1 = ResampledConv2d(in_channels, out_channels, 3, resample=None, spectral=True)
        self.conv2 = ResampledConv2d(out_channels, out_channels, 3, resample=resample, spectral=True)
        self.shortcut = (
            ResampledConv2d(in_channels, out_channels, 1, resample=resample, spectral=True)
            if down or in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W), or half of it each way."""
        residual = self.conv1(x if self.first else F.relu(x))
        return self.conv2(F.relu(residual)) + self.shortcut(x)


class ProjectionHead(nn.Module):
    """The logit of features phi, psi(phi) + <e_y, phi> (Miyato & Koyama 2018, eq. 3), all spectrally normalised.

    Args:
        features: size of phi.
        classes: rows of the embedding e; with 0 there is none, and the logit is psi(phi).
    """

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.linear = SpectralLinear(features, 1)
        self.embedding = SpectralEmbedding(classes, features) if classes else None

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """(B, features) and (B,) -> (B,)."""
        logits = self.linear(features).squeeze(1)
        if self.embedding is None or labels is None:
            return logits
        return logits + (self.embedding(labels) * features).sum(1)


class ResidualDiscriminator(nn.Module):
    """Residual blocks, self-attention behind one of them, ReLU, the sum over all pixels and a projection of the label.

    Args:
        channels: of the images.
        widths: channels of each block's output.
        halvings: how many blocks, from the first on, halve the resolution.
        attention: behind which block there is self-attention, counted from 0; None: behind none.
        classes: 0 if it is not conditional.
    """

    def __init__(self, channels: int, widths: Sequence[int], *, halvings: int, attention: int | None, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for depth, (before, width) in enumerate(pairwise([channels, *widths])):
            layers.append(DiscriminatorBlock(before, width, down=depth < halvings, first=depth == 0))
            if depth == attention:
                layers.append(SelfAttention(width))
        self.layers = nn.Sequential(*layers)
        self.head = ProjectionHead(widths[-1], classes)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """(B, C, H, W) and (B,) -> logits (B,)."""
        x = self.layers(images.contiguous(memory_format=torch.channels_last))
        return self.head(F.relu(x).sum(dim=(2, 3)), labels).float()


def draw_xavier(network: nn.Module) -> None:
    """Uniform of Glorot & Bengio 2010, with gain sqrt(2) for the 3x3 convolutions, which ReLUs precede; no biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            behind_relu = isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1
            nn.init.xavier_uniform_(module.weight, gain=2**0.5 if behind_relu else 1.0)
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                nn.init.zeros_(module.bias)
