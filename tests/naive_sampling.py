"""Sampling as the definition has it: the whole network for each value of each pixel."""

import torch
from torch import Tensor, nn

from genmodels.nn.pixel_likelihood import PixelLikelihood


@torch.no_grad()
def sample(
    network: nn.Module, likelihood: PixelLikelihood, images: Tensor, uniform: Tensor, *told: Tensor | None
) -> Tensor:
    """The images, (B, C, H, W) of anything, drawn anew with uniform numbers (B, draws, H, W)."""
    images = torch.zeros_like(images)
    _, channels, height, width = images.shape
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                parameters = network(images, *told)[:, :, row, column]
                known = list(images[:, :channel, row, column].unbind(1))
                images[:, channel, row, column] = likelihood.draw(parameters, uniform[:, :, row, column], known)
    return images
