"""SNGAN: spectral normalisation for GANs (Miyato, Kataoka, Koyama & Yoshida 2018), and with labels the projection
discriminator (Miyato & Koyama 2018). The residual networks for CIFAR-10 of the first paper's appendix B.4, table 4."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.models.base import DataInfo
from genmodels.models.class_conditional import ClassConditionalConfig, ClassConditionalGAN
from genmodels.nn.batch_norm import ConditionalBatchNorm, UnconditionalBatchNorm
from genmodels.nn.residual import GeneratorBlock, ResidualDiscriminator, draw_xavier
from genmodels.nn.spectral_norm import settle_power_iterations


class Config(ClassConditionalConfig):
    """The defaults are the papers' for CIFAR-10: 100,000 updates of the generator, five times as many of the
    discriminator."""

    generator_channels: int = Field(256, ge=1)
    discriminator_channels: int = Field(128, ge=1)
    linear_decay: bool = True

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"conditional": False},
        "projection": {},
        "cpu": {
            "generator_channels": 32,
            "discriminator_channels": 32,
            "generator_learning_rate": 5e-4,
            "discriminator_learning_rate": 1e-3,
            "discriminator_steps": 1,
            "images": 80_000,
            "ema_half_life_images": 5_000,
        },
        "demo": {
            "resolution": 8,
            "latent": 32,
            "generator_channels": 64,
            "discriminator_channels": 32,
            "generator_learning_rate": 1e-3,
            "discriminator_learning_rate": 1e-3,
            "discriminator_steps": 2,
            "images": 100_000,
            "ema_half_life_images": 5_000,
        },
    }


class Generator(nn.Module):
    """A dense layer to 4x4, and a residual block for each doubling of the resolution."""

    def __init__(self, config: Config, channels: int, classes: int):
        super().__init__()

        def norm(width: int) -> nn.Module:
            return ConditionalBatchNorm(width, classes) if classes else UnconditionalBatchNorm(width)

        width = config.generator_channels
        self.dense = nn.Linear(config.latent, width * 16)
        self.blocks = nn.ModuleList(GeneratorBlock(width, width, norm=norm) for _ in range(config.doublings))
        self.norm = UnconditionalBatchNorm(width)
        self.to_image = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, latent: Tensor, labels: Tensor | None) -> Tensor:
        """(B, Z) and (B,) -> images (B, C, H, W)."""
        x = self.dense(latent).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x, labels)
        return torch.tanh(self.to_image(F.relu(self.norm(x)))).float()


class SNGAN(ClassConditionalGAN):
    """Five updates of the spectrally normalised discriminator for one of the generator."""

    Config = Config
    title = "SNGAN"

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.generator = Generator(config, data.channels, self.classes)
        self.discriminator = ResidualDiscriminator(
            data.channels,
            [config.discriminator_channels] * 4,
            halvings=min(4, max(1, config.doublings - 1)),  # to 8x8 pixels, from 8x8 to 4x4
            attention=None,
            classes=self.classes,
        )
        draw_xavier(self)
        settle_power_iterations(self)
