"""Layers with an equalised learning rate (Karras et al. 2018, section 4.1).

Weights are drawn from N(0, 1) and scaled by He's constant at run time, so that Adam moves all of them at the same
relative speed.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.nn.convolution import conv2d, upsampled_conv2d

HE_GAIN = math.sqrt(2)


class EqualizedConv2d(nn.Module):
    """Convolution with stride 1 and `same` padding, scaled by gain / sqrt(fan-in)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, gain: float = HE_GAIN):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = gain / math.sqrt(in_channels * kernel_size**2)
        self.padding = kernel_size // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        if x.numel() < self.weight.numel():
            return conv2d(x * self.scale, self.weight, self.bias, padding=self.padding)
        return conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class EqualizedUpsampleConv2d(EqualizedConv2d):
    """Nearest x2 followed by a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, 2H, 2W)."""
        return upsampled_conv2d(x, self.weight * self.scale, self.bias)


class EqualizedLinear(nn.Module):
    """Dense layer scaled by gain / sqrt(fan-in)."""

    def __init__(self, in_features: int, out_features: int, *, gain: float = HE_GAIN, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.scale = gain / math.sqrt(in_features)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) -> (B, out_features)."""
        return F.linear(x * self.scale, self.weight, self.bias)
