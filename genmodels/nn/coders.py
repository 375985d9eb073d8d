"""Encoders of images to vectors, and decoders that mirror them, fully connected or convolutional.

Nothing in them looks from one image of a batch at another. B batch, C channels, R side of the image, D code.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

Architecture = Literal["dense", "convolutional"]


def encoder(
    architecture: Architecture, channels: int, resolution: int, code: int, *, hidden: Sequence[int], width: int
) -> nn.Sequential:
    """(B, C, R, R) -> (B, D). Dense: hidden layers of these sizes. Convolutional: `width` feature maps, doubled
    whenever the side is halved, down to 4 or to the last that is even."""
    if architecture == "dense":
        return nn.Sequential(nn.Flatten(), *dense([channels * resolution**2, *hidden, code]))
    maps, side = _pyramid(resolution, width)
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
    for wide, wider in pairwise(maps):
        layers += [nn.Conv2d(wide, wider, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(maps[-1] * side**2, code))


def decoder(
    architecture: Architecture, channels: int, resolution: int, code: int, *, hidden: Sequence[int], width: int
) -> nn.Sequential:
    """(B, D) -> (B, C, R, R): the encoder's layers in reverse order, without an activation at the end."""
    if architecture == "dense":
        layers = dense([code, *reversed(hidden), channels * resolution**2])
        return nn.Sequential(*layers, nn.Unflatten(1, (channels, resolution, resolution)))
    maps, side = _pyramid(resolution, width)
    layers = [nn.Linear(code, maps[-1] * side**2), _ToMaps(1, (maps[-1], side, side)), nn.ReLU()]
    for wider, wide in pairwise(reversed(maps)):
        layers += [nn.ConvTranspose2d(wider, wide, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))


class _ToMaps(nn.Unflatten):
    """Channels last, as transposed convolutions give back what they get: they take half the time so on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).contiguous(memory_format=torch.channels_last)


def dense(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes, from the input's to the output's, with ReLU between them."""
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _pyramid(resolution: int, width: int) -> tuple[list[int], int]:
    """Feature maps by level, and the side of the last one."""
    maps, side = [width], resolution
    while side > 4 and side % 2 == 0:
        maps.append(2 * maps[-1])
        side //= 2
    return maps, side
