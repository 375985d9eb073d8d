"""Deep convolutional GAN (Radford, Metz & Chintala, ICLR 2016): the game of `gan`, and five rules for its players.

1. Strided convolutions in the discriminator and transposed ones in the generator, no pooling.
2. Batch norm in both, but not on the generator's output and the discriminator's input.
3. No fully connected hidden layers.
4. ReLU in the generator, tanh at its output.
5. Leaky ReLU in the discriminator.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from genmodels.models import gan
from genmodels.models.base import Context
from genmodels.nn.normalization import BatchNorm


class Config(gan.GameConfig):
    """The defaults are the authors' 64x64 networks; the budget is the paper's five epochs of LSUN bedrooms."""

    resolution: int = Field(64, ge=8, le=128, description="a power of two")
    coarsest: int = Field(4, ge=2, le=4, multiple_of=2, description="side of the generator's first feature map")
    generator_channels: int = Field(64, ge=1, description="before the last layer; twice as many at each half the side")
    discriminator_channels: int = Field(64, ge=1, description="after the first layer")
    images: int = Field(15_165_000, ge=1, description="images shown in all")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "cpu": {
            "resolution": 32,
            "generator_channels": 32,
            "discriminator_channels": 32,
            "batch_images": 64,
            "images": 100_000,
            "ema_half_life_images": 5_000,
        },
        "demo": {
            "resolution": 8,
            "coarsest": 2,
            "latent": 32,
            "generator_channels": 32,
            "discriminator_channels": 32,
            "batch_images": 64,
            "generator_learning_rate": 1e-3,
            "discriminator_learning_rate": 4e-4,
            "images": 200_000,
            "ema_half_life_images": 5_000,
        },
    }

    @field_validator("resolution")
    @classmethod
    def _is_a_power_of_two(cls, resolution: int) -> int:
        if resolution & (resolution - 1):
            raise ValueError(f"{resolution} is not a power of two; take 8, 16, 32, 64 or 128")
        return resolution

    def widths(self, channels: int) -> list[int]:
        """Channels from half the resolution down to the coarsest feature map."""
        return [channels * 2**depth for depth in range((self.resolution // self.coarsest).bit_length() - 1)]


class Generator(nn.Sequential):
    """Figure 1: the latent vector becomes the coarsest feature map, then each layer doubles the side."""

    def __init__(self, config: Config, channels: int):
        maps = config.widths(config.generator_channels)[::-1]
        layers: list[nn.Module] = [nn.ConvTranspose2d(config.latent, maps[0], config.coarsest, bias=False)]
        for coarse, fine in pairwise(maps):
            layers += [*_normalised(coarse), nn.ConvTranspose2d(coarse, fine, 4, stride=2, padding=1, bias=False)]
        layers += [*_normalised(maps[-1]), nn.ConvTranspose2d(maps[-1], channels, 4, stride=2, padding=1, bias=False)]
        super().__init__(*layers, nn.Tanh())
        self.apply(draw_weights)

    def forward(self, input: Tensor) -> Tensor:
        """Latents (B, Z) -> images (B, C, H, W) in [-1, 1]."""
        return super().forward(input[:, :, None, None]).float()


def _normalised(channels: int) -> list[nn.Module]:
    return [BatchNorm(channels), nn.ReLU(inplace=True)]


class Discriminator(nn.Sequential):
    """Each layer halves the side; the last one makes that a logit."""

    def __init__(self, config: Config, channels: int):
        maps = config.widths(config.discriminator_channels)
        layers: list[nn.Module] = [nn.Conv2d(channels, maps[0], 4, stride=2, padding=1, bias=False), _leaky()]
        for fine, coarse in pairwise(maps):
            halve = nn.Conv2d(fine, coarse, 4, stride=2, padding=1, bias=False)
            layers += [halve, BatchNorm(coarse), _leaky()]
        super().__init__(*layers, nn.Conv2d(maps[-1], 1, config.coarsest, bias=False), nn.Flatten(0))
        self.apply(draw_weights)


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.2, inplace=True)


@torch.no_grad()
def draw_weights(module: nn.Module) -> None:
    """N(0, 0.02), the scales of batch norm N(1, 0.02) (section 4, and the authors' code)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        module.weight.normal_(0.0, 0.02)
    elif isinstance(module, BatchNorm):
        module.weight.normal_(1.0, 0.02)


class DCGAN(gan.GAN):
    """One stage, two updates; the latent is uniform."""

    Config = Config
    Generator = Generator
    Discriminator = Discriminator
    title = "DCGAN"

    def latents(self, n: int, draws: gan.Draws) -> Tensor:
        """(n, Z), uniform on [-1, 1)."""
        return 2 * draws.rand(n, self.config.latent) - 1

    def judge(self, images: Tensor, context: Context) -> Tensor:
        return self.discriminator(images)
