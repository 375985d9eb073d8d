"""Pixels as whole numbers: `levels` evenly spaced values from -1 to 1, such as the 256 of a byte or the 2 of ink."""

from torch import Tensor


def to_levels(images: Tensor, levels: int) -> Tensor:
    """Images in [-1, 1] -> the nearest level of each pixel, int64 from 0 to levels - 1."""
    return images.add(1).mul((levels - 1) / 2).round().clamp(0, levels - 1).long()


def from_levels(indices: Tensor, levels: int) -> Tensor:
    """The way back: levels from 0 to levels - 1, of any dtype -> float32 in [-1, 1]."""
    return indices.float().mul(2 / (levels - 1)).sub(1)
