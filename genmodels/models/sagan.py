"""SAGAN: self-attention in both networks, spectral normalisation in both, and two time scales: the discriminator learns
four times as fast as the generator, update for update (Zhang, Goodfellow, Metaxas & Odena 2019)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.models.base import DataInfo
from genmodels.models.class_conditional import ClassConditionalConfig, ClassConditionalGAN
from genmodels.nn.attention import SelfAttention
from genmodels.nn.batch_norm import ConditionalBatchNorm, UnconditionalBatchNorm
from genmodels.nn.residual import GeneratorBlock, ResidualDiscriminator, draw_xavier
from genmodels.nn.spectral_norm import SpectralConv2d, SpectralLinear, settle_power_iterations


@dataclass(frozen=True)
class Shape:
    """The residual networks for one resolution, as Brock et al. (2019) list them too, in multiples of the base width:
    the generator's from 4x4 on, the discriminator's by block."""

    generator: tuple[int, ...]
    discriminator: tuple[int, ...]
    halvings: int


SHAPES = {
    8: Shape((4, 4), (4, 4), halvings=1),
    16: Shape((4, 4, 4), (4, 4, 4), halvings=1),
    32: Shape((4, 4, 4, 4), (4, 4, 4, 4), halvings=2),
    64: Shape((16, 16, 8, 4, 2), (1, 2, 4, 8, 16), halvings=4),
    128: Shape((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), halvings=5),
    256: Shape((16, 16, 8, 8, 4, 2, 1), (1, 2, 4, 8, 8, 16, 16), halvings=6),
}


class Config(ClassConditionalConfig):
    """The defaults are the paper's for ImageNet at 128x128: a million updates of each network.

    The paper has no CIFAR-10. `cifar10` keeps its learning rates, one update each and Adam's betas; the batch of 64,
    attention at 16x16 in both networks and no average are those of StudioGAN (`configs/CIFAR10/SAGAN.json`), which has
    the same rates but betas (0.5, 0.999), weights that start orthogonal, a discriminator half as wide and a million
    updates of each network, where ours are 200,000. Widths are those of Brock's code (`SHAPES`).
    """

    resolution: int = Field(128, ge=8, le=256, description="a power of two")
    channels: int = Field(64, ge=8, description="base width, of which the blocks' are multiples")
    attention_resolution: int = Field(
        32, ge=4, description="of the feature maps with self-attention; at most half that of the images"
    )
    generator_learning_rate: float = Field(1e-4, gt=0)
    discriminator_learning_rate: float = Field(4e-4, gt=0)
    discriminator_steps: int = Field(1, ge=1, description="updates of the discriminator for one of the generator")
    batch_images: int = Field(256, ge=1, description="of one update, over all workers and micro-batches")
    images: int = Field(256_000_000, ge=1, description="shown in all")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "cifar10": {"resolution": 32, "batch_images": 64, "images": 12_800_000},
        "cpu": {
            "resolution": 32,
            "channels": 8,
            "attention_resolution": 8,
            "generator_learning_rate": 5e-4,
            "discriminator_learning_rate": 1e-3,
            "batch_images": 64,
            "images": 70_000,
            "ema_half_life_images": 5_000,
        },
        "demo": {
            "resolution": 8,
            "latent": 32,
            "channels": 16,
            "generator_learning_rate": 5e-4,
            "discriminator_learning_rate": 2e-3,
            "batch_images": 64,
            "images": 100_000,
            "ema_half_life_images": 5_000,
        },
    }

    @model_validator(mode="after")
    def _attends_inside_both_networks(self) -> Self:
        inside = [self.resolution >> halving for halving in range(1, self.shape.halvings + 1)]
        if self.attended not in inside:
            choice = " or ".join(map(str, inside))
            raise ValueError(
                f"attention_resolution={self.attention_resolution} is not a resolution inside both networks for "
                f"{self.resolution}x{self.resolution} images; take {choice}."
            )
        return self

    @property
    def attended(self) -> int:
        """The resolution of the feature maps with self-attention."""
        return min(self.attention_resolution, self.resolution // 2)

    @property
    def shape(self) -> Shape:
        """Widths of the networks' blocks."""
        return SHAPES[self.resolution]


class Generator(nn.Module):
    """A dense layer to 4x4, a residual block for each doubling of the resolution, and self-attention between two."""

    def __init__(self, config: Config, channels: int, classes: int):
        super().__init__()

        def norm(width: int) -> nn.Module:
            return ConditionalBatchNorm(width, classes) if classes else UnconditionalBatchNorm(width)

        widths = [config.channels * multiple for multiple in config.shape.generator]
        self.dense = SpectralLinear(config.latent, widths[0] * 16)
        self.blocks = nn.ModuleList(GeneratorBlock(*pair, norm=norm, spectral=True) for pair in pairwise(widths))
        self.attention_level = config.attended.bit_length() - 3
        self.attention = SelfAttention(widths[self.attention_level])
        self.norm = UnconditionalBatchNorm(widths[-1])
        self.to_image = SpectralConv2d(widths[-1], channels, 3, padding=1)

    def forward(self, latent: Tensor, labels: Tensor | None) -> Tensor:
        """(B, Z) and (B,) -> images (B, C, H, W)."""
        x = self.dense(latent).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        for level, block in enumerate(self.blocks):
            if level == self.attention_level:
                x = self.attention(x)
            x = block(x, labels)
        return torch.tanh(self.to_image(F.relu(self.norm(x)))).float()


def discriminator(config: Config, channels: int, classes: int) -> ResidualDiscriminator:
    """Residual blocks down to a few pixels, with self-attention behind that which makes maps of its resolution."""
    return ResidualDiscriminator(
        channels,
        [config.channels * multiple for multiple in config.shape.discriminator],
        halvings=config.shape.halvings,
        attention=(config.resolution // config.attended).bit_length() - 2,
        classes=classes,
    )


class SAGAN(ClassConditionalGAN):
    """One update of the discriminator for one of the generator."""

    Config = Config
    title = "SAGAN"

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.generator = Generator(config, data.channels, self.classes)
        self.discriminator = discriminator(config, data.channels, self.classes)
        draw_xavier(self)
        settle_power_iterations(self)
