"""Progressive growing of GANs (Karras, Aila, Laine & Lehtinen, ICLR 2018).

Both networks start at 4x4 and grow by one level at a time, each faded in over `fade_images` real images shown and then
stabilised over `stable_images`. All levels exist from the start, so optimisers, averages and checkpoints never change
shape. Level 0 is 4x4, level L is 4 * 2^L.
"""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.losses import AdversarialName
from genmodels.models.adversarial import Adversarial, AdversarialConfig, shared_fakes
from genmodels.models.base import (
    Adam,
    Batch,
    ConditionalConfig,
    Context,
    DataInfo,
    Density,
    Ema,
    GenerativeModel,
    Input,
    LossTerms,
    Passes,
    Stage,
    Update,
    scaled,
)
from genmodels.nn.convolution import input_gradient_differentiable
from genmodels.nn.equalized import HE_GAIN, EqualizedConv2d, EqualizedLinear, EqualizedUpsampleConv2d
from genmodels.nn.normalization import minibatch_stddev, pixel_norm


class Config(AdversarialConfig, ConditionalConfig):
    """The defaults are the paper's for CelebA-HQ on one GPU (appendix A.1): 19 million images to 1024x1024."""

    resolution: int = Field(1024, ge=4, le=1024, description="of the last level; a power of two")
    latent: int = Field(512, ge=1, description="size of the latent vector")
    fmap_base: int = Field(8192, ge=1, description="feature maps at level L are fmap_base / 2^(L+1), at most fmap_max")
    fmap_max: int = Field(512, ge=1)
    minibatch_stddev_group: int = Field(16, ge=1, description="largest group; it is cut to divide a worker's batch")
    conditional: bool = Field(False, description="the label joins the latent, and the discriminator also classifies")
    label_weight: float = Field(1.0, ge=0, description="weight of the classification loss (AC-GAN), if conditional")
    adversarial_loss: AdversarialName = "wgan_gp"
    weight_clip: float = Field(1.0, gt=0, description="bound of wgan's weights, in units of He's constant")
    drift_weight: float = Field(0.001, ge=0)
    learning_rate: float = Field(1e-3, gt=0)
    batch_images: int | tuple[int, ...] = Field(
        (16, 16, 16, 16, 16, 16, 14, 6, 3), description="by level from 4x4 on; the last holds for all that follow"
    )
    fade_images: int = Field(800_000, ge=0, description="images shown while a level fades in")
    stable_images: int = Field(800_000, ge=1, description="images shown to a level after that")
    final_images: int = Field(6_200_000, ge=1, description="the same for the last level")
    ema_half_life_images: float = Field(11_000, gt=0, description="0.999 a step at batch 16")
    mirror: bool = Field(False, description="flip half of the real images; the paper does on faces")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "cifar10": {  # the paper's table 3
            "resolution": 32,
            "latent": 128,
            "fmap_base": 4096,
            "fmap_max": 128,
            "gradient_penalty_target": 750.0,
            "fade_images": 400_000,
            "stable_images": 400_000,
            "final_images": 17_600_000,
        },
        "demo": {
            "resolution": 8,
            "latent": 64,
            "fmap_base": 1024,
            "fmap_max": 64,
            "minibatch_stddev_group": 4,
            "learning_rate": 3e-3,
            "batch_images": 32,
            "fade_images": 10_000,
            "stable_images": 10_000,
            "final_images": 30_000,
            "ema_half_life_images": 2_000,
        },
    }

    @field_validator("resolution")
    @classmethod
    def _is_a_power_of_two(cls, resolution: int) -> int:
        if resolution & (resolution - 1):
            raise ValueError(f"{resolution} is not a power of two; take 4, 8, 16, ... 1024")
        return resolution

    @field_validator("batch_images")
    @classmethod
    def _is_positive(cls, batch_images: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if not batch_images or min(batch_images if isinstance(batch_images, tuple) else (batch_images,)) < 1:
            raise ValueError(f"{batch_images} must hold at least one number, each at least 1")
        return batch_images

    @property
    def levels(self) -> int:
        """How many resolutions there are."""
        return self.resolution.bit_length() - 2

    def feature_maps(self, level: int) -> int:
        """Channels of the level's activations; those of the discriminator's dense layer at level -1."""
        return max(1, min(self.fmap_base // 2 ** (level + 1), self.fmap_max))

    def batch_images_at(self, level: int) -> int:
        """Images in a minibatch of the level, over all workers."""
        if isinstance(self.batch_images, int):
            return self.batch_images
        return self.batch_images[min(level, len(self.batch_images) - 1)]

    def stages(self, data: DataInfo) -> list[Stage]:
        return [self._stage(level, data) for level in range(self.levels)]

    def _stage(self, level: int, data: DataInfo) -> Stage:
        resolution = 4 * 2**level
        stable_images = self.final_images if level == self.levels - 1 else self.stable_images
        return Stage(
            name=f"{resolution}x{resolution}",
            images=stable_images + (self.fade_images if level else 0),
            batch_images=self.batch_images_at(level),
            inputs=self.inputs(data) | {"image": Input(resolution=resolution)},
            resolution=resolution,
        )


def leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2, inplace=True)


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


class GeneratorBlock(nn.Module):
    """Nearest x2, then twice: convolution, leaky ReLU, pixel norm."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = EqualizedUpsampleConv2d(in_channels, out_channels)
        self.conv2 = EqualizedConv2d(out_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = pixel_norm(leaky_relu(self.conv1(x)))
        return pixel_norm(leaky_relu(self.conv2(x)))


class Generator(nn.Module):
    """The paper's table 2, left."""

    def __init__(self, config: Config, channels: int, classes: int):
        super().__init__()
        maps = [config.feature_maps(level) for level in range(config.levels)]
        self.classes = classes
        self.dense = EqualizedLinear(config.latent + classes, maps[0] * 16, gain=HE_GAIN / 4, bias=False)
        self.dense_bias = nn.Parameter(torch.zeros(maps[0], 1, 1))
        self.conv = EqualizedConv2d(maps[0], maps[0], 3)
        self.blocks = nn.ModuleList(GeneratorBlock(*pair) for pair in pairwise(maps))
        self.to_rgb = nn.ModuleList(EqualizedConv2d(width, channels, 1, gain=1) for width in maps)

    def forward(self, latent: Tensor, labels: Tensor | None, level: int, alpha: float) -> Tensor:
        """(B, Z) and, if conditional, (B,) -> images (B, C, H, W) of the level, `alpha` of the way faded in."""
        if labels is not None:
            latent = torch.cat((latent, F.one_hot(labels, self.classes).to(latent.dtype)), dim=1)
        x = self.dense(pixel_norm(latent)).unflatten(1, (-1, 4, 4)) + self.dense_bias
        x = pixel_norm(leaky_relu(x.contiguous(memory_format=torch.channels_last)))
        x = pixel_norm(leaky_relu(self.conv(x)))
        before = x
        for block in self.blocks[:level]:
            before, x = x, block(x)
        images = self.to_rgb[level](x)
        if alpha < 1:
            images = torch.lerp(upsample(self.to_rgb[level - 1](before)), images, alpha)
        return images.float()


class DiscriminatorBlock(nn.Module):
    """Twice: convolution, leaky ReLU; then the average of 2x2."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = EqualizedConv2d(in_channels, in_channels, 3)
        self.conv2 = EqualizedConv2d(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return downsample(leaky_relu(self.conv2(leaky_relu(self.conv1(x)))))


class Discriminator(nn.Module):
    """The paper's table 2, right. Its output is one logit, followed by the logits of the classes if conditional."""

    def __init__(self, config: Config, channels: int, classes: int):
        super().__init__()
        maps = [config.feature_maps(level) for level in range(config.levels)]
        self.group = config.minibatch_stddev_group
        self.from_rgb = nn.ModuleList(EqualizedConv2d(channels, width, 1) for width in maps)
        self.blocks = nn.ModuleList(DiscriminatorBlock(fine, coarse) for coarse, fine in pairwise(maps))
        self.conv = EqualizedConv2d(maps[0] + 1, maps[0], 3)
        self.dense = EqualizedLinear(maps[0] * 16, config.feature_maps(-1))
        self.logits = EqualizedLinear(config.feature_maps(-1), 1 + classes, gain=1)

    def forward(self, images: Tensor, level: int, alpha: float, *, batches: int = 1) -> Tensor:
        """(B, C, H, W) of the level -> (B, 1 + classes). With `batches` minibatches joined one after the other, the
        minibatch standard deviation does not look from one into the next."""
        images = images.contiguous(memory_format=torch.channels_last)
        x = leaky_relu(self.from_rgb[level](images))
        for depth in range(level, 0, -1):
            x = self.blocks[depth - 1](x)
            if depth == level and alpha < 1:
                x = torch.lerp(leaky_relu(self.from_rgb[level - 1](downsample(images))), x, alpha)
        x = minibatch_stddev(x, largest_divisor(len(x) // batches, at_most=self.group))
        x = leaky_relu(self.conv(x))
        return self.logits(leaky_relu(self.dense(x.flatten(1))))


def largest_divisor(n: int, *, at_most: int) -> int:
    return next(divisor for divisor in range(min(n, at_most), 0, -1) if n % divisor == 0)


class ProgressiveGAN(GenerativeModel):
    """One stage for each resolution, and in each step one update of the discriminator and one of the generator."""

    Config = Config
    config: Config
    density = Density.IMPLICIT
    title = "Progressive GAN"

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        classes = config.classes(data)
        self.generator = Generator(config, data.channels, classes)
        self.discriminator = Discriminator(config, data.channels, classes)
        self.adversarial = Adversarial(config)
        self.ema = Ema(("generator",), half_life_images=config.ema_half_life_images)
        self.level = config.levels - 1
        self.alpha = 1.0

    def updates(self, stage: Stage) -> list[Update]:
        adam = Adam(self.config.learning_rate, betas=(0.0, 0.99))
        level = self._level_of(stage)
        judge = trained_at(level, self.discriminator)
        constrain = partial(self.adversarial.constrain, list(self.discriminator.parameters()))
        return [
            Update("discriminator", judge, self.discriminator_loss, adam, after=constrain),
            Update("generator", trained_at(level, self.generator), self.generator_loss, adam),
        ]

    def _level_of(self, stage: Stage) -> int:
        return stage.resolution.bit_length() - 3

    def least_flops(self, passes: Mapping[str, Passes]) -> float:
        """Both updates of a step judge the same fakes."""
        generator = passes["generator"]
        return self.adversarial.least_judging(passes["discriminator"]) + generator.forward + generator.to_weights

    def at(self, stage: Stage, images_in_stage: int) -> None:
        self.level = self._level_of(stage)
        fading = self.level > 0 and images_in_stage < self.config.fade_images
        self.alpha = images_in_stage / self.config.fade_images if fading else 1.0

    @property
    def whole(self) -> bool:
        """Not while a level fades in: what is kept has no alpha, and would show that level as it was drawn."""
        return self.alpha == 1

    def preprocess(self, batch: Batch, context: Context) -> Batch:
        """While a level fades in, real images are blended with their copy at the level before, like the generator's."""
        images = scaled(batch["image"])
        if self.config.mirror:
            flips = context.rand(len(images), 1, 1, 1) < 0.5
            images = torch.where(flips, images.flip(3), images)
        if self.alpha < 1:
            images = torch.lerp(upsample(downsample(images)), images, self.alpha)
        return batch | {"image": images}

    def discriminator_loss(self, batch: Batch, context: Context) -> LossTerms:
        labels = batch.get("label")
        real = context.augmented(batch["image"])
        fake = context.augmented(self._fakes(batch, context, to_learn=False).detach())
        outputs = self.discriminator(torch.cat((real, fake)), self.level, self.alpha, batches=2)
        logits_real, logits_fake = outputs[:, 0].chunk(2)
        terms = self.adversarial.discriminator_terms(self._critic, real, fake, logits_real, logits_fake, context)
        if labels is not None:
            classification = F.cross_entropy(outputs[:, 1:], labels.repeat(2), reduction="mean")
            terms["label"] = (2 * self.config.label_weight, classification)
        return LossTerms.weighted(terms)

    def generator_loss(self, batch: Batch, context: Context) -> LossTerms:
        fake = context.augmented(self._fakes(batch, context, to_learn=True))
        outputs = self.discriminator(fake, self.level, self.alpha)
        loss = self.adversarial.generator_loss(self._critic, batch["image"], outputs[:, 0], context)
        terms = {"adversarial": (1.0, loss)}
        if self.config.conditional:
            terms["label"] = (self.config.label_weight, F.cross_entropy(outputs[:, 1:], batch["label"]))
        return LossTerms.weighted(terms)

    def _critic(self, images: Tensor) -> Tensor:
        with input_gradient_differentiable():
            return self.discriminator(images, self.level, self.alpha)[:, 0]

    def _fakes(self, batch: Batch, context: Context, *, to_learn: bool) -> Tensor:
        latents = partial(context.randn, len(batch["image"]), self.config.latent)
        generator = partial(self.generator, labels=batch.get("label"), level=self.level, alpha=self.alpha)
        return shared_fakes(context, latents, generator, to_learn=to_learn)

    def prior(self, n: int, *, generator: torch.Generator) -> Tensor:
        """n latents, (n, Z), standard normal."""
        drawn = torch.randn(n, self.config.latent, generator=generator, device=generator.device)
        return drawn.to(self.generator.dense_bias.device)

    @torch.no_grad()
    def decode(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents (n, Z), and labels (n,) if it is conditional, to images of the present level, about in [-1, 1]."""
        labels = None if labels is None else labels.to(codes.device)
        return self.generator(codes, labels, self.level, self.alpha)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """n images of the present level, (n, C, H, W), about in [-1, 1]; of random labels if it needs them."""
        codes = self.prior(n, generator=generator)
        if self.config.conditional and labels is None:
            labels = torch.randint(self.data.classes, (n,), generator=generator, device=generator.device)
        return self.decode(codes, labels)


def trained_at(level: int, network: Generator | Discriminator) -> list[nn.Parameter]:
    """The parameters that take part at the level: those of its blocks, and of the two levels' layers for images."""
    image_layers = network.to_rgb if isinstance(network, Generator) else network.from_rgb
    idle = {*network.blocks[level:].parameters(), *image_layers.parameters()}
    idle -= {*image_layers[max(level - 1, 0) : level + 1].parameters()}
    return [parameter for parameter in network.parameters() if parameter not in idle]
