"""Conditional GAN: a generator with conditional batch norm and a discriminator told the class in one of two ways.

The generator's every batch norm has a scale and a shift by class (Dumoulin et al. 2017). The discriminator gets the
label as maps beside the image (Mirza & Osindero 2014) or as a projection of its features (Miyato & Koyama 2018). Both
are the plain convolutional networks of Miyato et al. (2018), appendix B.4, table 3.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.models.base import DataInfo
from genmodels.models.class_conditional import ClassConditionalConfig, ClassConditionalGAN
from genmodels.nn.batch_norm import ConditionalBatchNorm, UnconditionalBatchNorm
from genmodels.nn.residual import ProjectionHead
from genmodels.nn.spectral_norm import SpectralConv2d, settle_power_iterations


class Config(ClassConditionalConfig):
    """The defaults are those of Miyato et al. for CIFAR-10: 100,000 updates of the generator."""

    channels: int = Field(64, ge=1, description="of the networks at full resolution; twice as many at each half of it")
    conditioning: Literal["projection", "concatenation"] = Field("projection", description="of the discriminator")
    linear_decay: bool = True

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "cpu": {
            "channels": 16,
            "generator_learning_rate": 5e-4,
            "discriminator_learning_rate": 1e-3,
            "discriminator_steps": 1,
            "images": 100_000,
            "ema_half_life_images": 5_000,
        },
        "demo": {
            "resolution": 8,
            "latent": 32,
            "channels": 32,
            "generator_learning_rate": 1e-3,
            "discriminator_learning_rate": 1e-3,
            "discriminator_steps": 2,
            "images": 100_000,
            "ema_half_life_images": 5_000,
        },
    }

    @property
    def widths(self) -> list[int]:
        """Channels at 4x4, 8x8, ... and full resolution."""
        return [self.channels * 2**halvings for halvings in range(self.doublings, -1, -1)]


class Generator(nn.Module):
    """A dense layer to 4x4, then transposed convolutions that double the resolution."""

    def __init__(self, config: Config, channels: int, classes: int):
        super().__init__()

        def norm(width: int) -> nn.Module:
            return ConditionalBatchNorm(width, classes) if classes else UnconditionalBatchNorm(width)

        widths = config.widths
        self.dense = nn.Linear(config.latent, widths[0] * 16)
        self.norms = nn.ModuleList(norm(width) for width in widths)
        self.convs = nn.ModuleList(nn.ConvTranspose2d(*pair, 4, stride=2, padding=1) for pair in pairwise(widths))
        self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, latent: Tensor, labels: Tensor | None) -> Tensor:
        """(B, Z) and (B,) -> images (B, C, H, W)."""
        x = self.dense(latent).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.norms[0](x, labels))
        for conv, norm in zip(self.convs, self.norms[1:], strict=True):
            x = F.relu(norm(conv(x), labels))
        return torch.tanh(self.to_image(x)).float()


class Discriminator(nn.Module):
    """Pairs of convolutions, the second of which halves the resolution down to 4x4; spectrally normalised."""

    def __init__(self, config: Config, channels: int, classes: int):
        super().__init__()
        projects = config.conditioning == "projection"
        self.maps = 0 if projects else classes
        widths = config.widths[::-1]
        self.first = SpectralConv2d(channels + self.maps, widths[0], 3, padding=1)
        self.halving = nn.ModuleList(SpectralConv2d(*pair, 4, stride=2, padding=1) for pair in pairwise(widths))
        self.convs = nn.ModuleList(SpectralConv2d(width, width, 3, padding=1) for width in widths[1:])
        self.head = ProjectionHead(widths[-1], classes if projects else 0)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """(B, C, H, W) and (B,) -> logits (B,)."""
        if self.maps and labels is not None:
            maps = F.one_hot(labels, self.maps).to(images.dtype)[..., None, None]
            images = torch.cat((images, maps.expand(-1, -1, *images.shape[2:])), dim=1)
        x = leaky_relu(self.first(images.contiguous(memory_format=torch.channels_last)))
        for halving, conv in zip(self.halving, self.convs, strict=True):
            x = leaky_relu(conv(leaky_relu(halving(x))))
        return self.head(x.sum(dim=(2, 3)), labels).float()


def leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


class ConditionalGAN(ClassConditionalGAN):
    """One update of the generator for several of the discriminator."""

    Config = Config
    title = "Conditional GAN"

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.generator = Generator(config, data.channels, self.classes)
        self.discriminator = Discriminator(config, data.channels, self.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        settle_power_iterations(self)
