"""Convolutions that see only what comes before a pixel in raster order, channel by channel (van den Oord et al. 2016).

Features are divided among `groups` channels, in order. At the pixel itself a feature sees those of earlier groups, and
of its own unless it is `exclusive` (mask A; mask B otherwise). With one group a pixel is one thing.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def group_mask(outputs: int, inputs: int, groups: int, *, exclusive: bool = False) -> Tensor:
    """Which outputs, in rows, may see which inputs at the pixel itself: (outputs, inputs) of 0 and 1."""
    of_output = torch.arange(outputs)[:, None] * groups // outputs
    of_input = torch.arange(inputs) * groups // inputs
    return (of_input < of_output if exclusive else of_input <= of_output).float()


class MaskedConv2d(nn.Conv2d):
    """Convolution, without padding of its own, whose weights are multiplied by a mask."""

    mask: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], mask: Tensor):
        super().__init__(in_channels, out_channels, kernel_size)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight * self.mask, self.bias)


class HorizontalConv(MaskedConv2d):
    """Sees the `reach` pixels to the left, and the pixel itself through the mask of groups; for gated layers the
    outputs come in two halves that are grouped alike. The input is padded on the left, or a window of
    reach + 1 columns."""

    def __init__(
        self, in_channels: int, out_channels: int, reach: int, *, groups: int, exclusive: bool = False, halves: int = 1
    ):
        mask = torch.ones(out_channels, in_channels, 1, reach + 1)
        own = group_mask(out_channels // halves, in_channels, groups, exclusive=exclusive)
        mask[:, :, 0, -1] = own.repeat(halves, 1)
        super().__init__(in_channels, out_channels, (1, reach + 1), mask)
        self.reach = reach
