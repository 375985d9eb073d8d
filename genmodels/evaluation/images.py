"""The two forms in which every metric takes images: uint8, or float in [-1, 1]; NCHW. Points, which are images of one
pixel, are always float."""

import torch
from torch import Tensor

from genmodels.spec import is_points


def as_stored(images: Tensor) -> Tensor:
    """What data sets store, and all scores use: uint8 in 0..255, as in a PNG, float images rounded and clipped; points
    as they are."""
    if images.dtype == torch.uint8 or is_points(images.shape[-1]):
        return images
    return images.float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


def as_pixels(images: Tensor) -> Tensor:
    """float32 in 0..255, float images not rounded."""
    if images.dtype == torch.uint8:
        return images.float()
    return images.float().add(1).mul(127.5)
