"""Layers with an equalised learning rate (Karras et al. 2018, section 4.1): weights are drawn from N(0, 1) and scaled by
He's constant at run time, so that Adam moves all of them at the same relative speed."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


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
