"""The two forms in which every metric takes images: uint8, or float in [-1, 1]; NCHW."""

import torch
from torch import Tensor


def as_bytes(images: Tensor) -> Tensor:
    """What a PNG of the images holds: uint8 in 0..255, float images rounded and clipped. All scores use these."""
    if images.dtype == torch.uint8:
        return images
    return images.float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


def as_pixels(images: Tensor) -> Tensor:
    """float32 in 0..255, float images not rounded."""
    if images.dtype == torch.uint8:
        return images.float()
    return images.float().add(1).mul(127.5)
