"""BigGAN (Brock, Donahue & Simonyan 2019): SAGAN with hierarchical latents, a shared embedding of the class, orthogonal
regularisation, truncated latents, averaged weights with standing statistics, and large batches.

The paper's batch of 2,048 is reached on few devices by `training.accumulation`; batch norm then looks across one
micro-batch of all workers instead of the whole batch.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.models import sagan
from genmodels.models.adversarial import WeightedTerms
from genmodels.models.base import Batch, Context, DataInfo
from genmodels.models.class_conditional import ClassConditionalGAN
from genmodels.nn.attention import SelfAttention
from genmodels.nn.batch_norm import ProjectedBatchNorm, UnconditionalBatchNorm
from genmodels.nn.orthogonal import orthogonal_penalty
from genmodels.nn.residual import GeneratorBlock
from genmodels.nn.spectral_norm import SpectralConv2d, SpectralLinear, settle_power_iterations


class Config(sagan.Config):
    """The defaults are the paper's for ImageNet at 128x128: 165,000 updates of the generator (table 1), with twice as
    many of the discriminator.

    `cifar10` has the numbers of the author's PyTorch script (`launch_cifar_ema.sh`): batch, learning rates, four
    updates of the discriminator for one of the generator, no orthogonal penalty, 500 epochs of 50,000 images. Width,
    latent, betas and the average's 0.9999 an update of the generator are its code's defaults. It does without
    attention, chunks and the shared embedding, draws weights from N(0, 0.02) and averages from update 1,000 on; here
    the networks and their first weights are the paper's, and the average begins at once, over fewer images.
    """

    latent: int = Field(120, ge=1, description="size of the latent vector, in equal chunks for the layer and blocks")
    channels: int = Field(96, ge=8, description="base width, of which the blocks' are multiples")
    embedding: int = Field(128, ge=1, description="size of the class embedding that all batch norms share")
    attention_resolution: int = Field(
        64, ge=4, description="of the feature maps with self-attention; at most half that of the images"
    )
    orthogonal_weight: float = Field(1e-4, ge=0, description="of the orthogonal penalty on the generator")
    generator_learning_rate: float = Field(5e-5, gt=0)
    discriminator_learning_rate: float = Field(2e-4, gt=0)
    betas: tuple[float, float] = Field((0.0, 0.999), description="Adam's")
    discriminator_steps: int = Field(2, ge=1, description="updates of the discriminator for one of the generator")
    batch_images: int = Field(2048, ge=1, description="of one update, over all workers and micro-batches")
    images: int = Field(675_840_000, ge=1, description="shown in all")
    ema_half_life_images: float = Field(28_400_000, ge=0, description="0.9999 an update of the generator; 0 keeps none")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "paper_256": {"resolution": 256, "latent": 140},
        "cifar10": {
            "resolution": 32,
            "latent": 128,
            "channels": 64,
            "orthogonal_weight": 0.0,
            "generator_learning_rate": 2e-4,
            "discriminator_learning_rate": 2e-4,
            "discriminator_steps": 4,
            "batch_images": 50,
            "images": 25_000_000,
            "ema_half_life_images": 1_400_000,
        },
        "cpu": {
            "resolution": 32,
            "channels": 8,
            "embedding": 16,
            "latent": 64,
            "attention_resolution": 8,
            "generator_learning_rate": 5e-4,
            "discriminator_learning_rate": 1e-3,
            "discriminator_steps": 1,
            "batch_images": 64,
            "images": 70_000,
            "ema_half_life_images": 5_000,
        },
        "demo": {
            "resolution": 8,
            "latent": 32,
            "channels": 16,
            "embedding": 16,
            "generator_learning_rate": 1e-3,
            "discriminator_learning_rate": 2e-3,
            "batch_images": 64,
            "images": 100_000,
            "ema_half_life_images": 5_000,
        },
    }

    @model_validator(mode="after")
    def _latent_divides_into_chunks(self) -> Self:
        chunks = self.doublings + 1
        if self.latent % chunks:
            raise ValueError(f"latent={self.latent} does not divide into {chunks} chunks; take a multiple of {chunks}.")
        return self


class Generator(nn.Module):
    """SAGAN's, but each block's batch norms are conditioned on a chunk of the latent and the embedded class, and the
    dense layer takes a chunk of its own."""

    def __init__(self, config: Config, channels: int, classes: int):
        super().__init__()
        self.chunk = config.latent // (config.doublings + 1)
        features = self.chunk + (config.embedding if classes else 0)

        def norm(width: int) -> nn.Module:
            return ProjectedBatchNorm(width, features)

        widths = [config.channels * multiple for multiple in config.shape.generator]
        self.embedding = nn.Embedding(classes, config.embedding) if classes else None
        self.dense = SpectralLinear(self.chunk, widths[0] * 16)
        self.blocks = nn.ModuleList(GeneratorBlock(*pair, norm=norm, spectral=True) for pair in pairwise(widths))
        self.attention_level = config.attended.bit_length() - 3
        self.attention = SelfAttention(widths[self.attention_level])
        self.norm = UnconditionalBatchNorm(widths[-1])
        self.to_image = SpectralConv2d(widths[-1], channels, 3, padding=1)

    def forward(self, latent: Tensor, labels: Tensor | None) -> Tensor:
        """(B, Z) and (B,) -> images (B, C, H, W)."""
        first, *chunks = latent.split(self.chunk, dim=1)
        if self.embedding is not None and labels is not None:
            embedded = self.embedding(labels)
            chunks = [torch.cat((embedded, chunk), dim=1) for chunk in chunks]
        x = self.dense(first).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        for level, (block, condition) in enumerate(zip(self.blocks, chunks, strict=True)):
            if level == self.attention_level:
                x = self.attention(x)
            x = block(x, condition)
        return torch.tanh(self.to_image(F.relu(self.norm(x)))).float()


class BigGAN(ClassConditionalGAN):
    """Two updates of the discriminator for one of the generator, whose filters are pushed towards orthogonality."""

    Config = Config
    title = "BigGAN"

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.orthogonal_weight = config.orthogonal_weight
        self.generator = Generator(config, data.channels, self.classes)
        self.discriminator = sagan.discriminator(config, data.channels, self.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                nn.init.orthogonal_(module.weight)
        settle_power_iterations(self)

    def generator_terms(self, batch: Batch, context: Context) -> WeightedTerms:
        terms = super().generator_terms(batch, context)
        if self.orthogonal_weight:
            filters = [m.weight for m in self.generator.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            terms["orthogonal"] = (self.orthogonal_weight, orthogonal_penalty(filters))
        return terms
