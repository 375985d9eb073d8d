"""Unpaired image-to-image translation with cycle-consistent adversarial networks (Zhu, Park, Isola & Efros, ICCV 2017).

Two domains, a and b. An image shown is one of each.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.errors import unknown
from genmodels.losses import AdversarialName
from genmodels.models.adversarial import Adversarial, AdversarialConfig, WeightedTerms
from genmodels.models.base import (
    Adam,
    Batch,
    Context,
    DataInfo,
    Density,
    GenerativeModel,
    Input,
    LossTerms,
    Passes,
    Stage,
    Update,
    scaled,
)
from genmodels.nn.convolution import NarrowConv2d
from genmodels.nn.normalization import instance_norm
from genmodels.nn.patch_discriminator import PatchDiscriminator
from genmodels.nn.winograd import ReflectingConv2d

DOMAINS = ("a", "b")


class Config(AdversarialConfig):
    """The defaults are the paper's (section 4 and appendix): horse2zebra, 200 epochs of 1,334 images, batch 1."""

    resolution: int = Field(256, ge=16, multiple_of=4)
    generator_channels: int = Field(64, ge=1, description="of the generators' first layer")
    residual_blocks: int | None = Field(None, ge=0, description="none given: 9 from 256x256 on, 6 below")
    discriminator_channels: int = Field(64, ge=1, description="of the discriminators' first layer")
    discriminator_layers: int = Field(3, ge=1, description="three judge patches of 70x70, two 34x34, one 16x16")
    adversarial_loss: AdversarialName = "lsgan"
    cycle_weight: float = Field(10.0, ge=0)
    identity_weight: float = Field(0.5, ge=0, description="relative to cycle_weight; 0 turns it off")
    pool_images: int = Field(50, ge=0, description="earlier fakes kept for each discriminator")
    learning_rate: float = Field(2e-4, gt=0)
    batch_images: int = Field(1, ge=1)
    constant_images: int = Field(133_400, ge=0, description="images shown at the full learning rate")
    decay_images: int = Field(133_400, ge=0, description="images shown while it falls linearly to 0")
    zoom: float = Field(286 / 256, ge=1, description="enlargement before the random crop back to the resolution")
    flip: bool = Field(True, description="flip half of the images")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "demo": {
            "resolution": 32,
            "generator_channels": 24,
            "residual_blocks": 3,
            "discriminator_channels": 32,
            "discriminator_layers": 2,
            "batch_images": 4,
            "constant_images": 3_200,
            "decay_images": 3_200,
        },
    }

    @model_validator(mode="after")
    def _discriminators_have_patches_to_judge(self) -> Self:
        if self.resolution >> self.discriminator_layers < 3:  # the last two convolutions take a pixel each
            most = (self.resolution // 3).bit_length() - 1
            raise ValueError(
                f"resolution={self.resolution} is too small for discriminator_layers={self.discriminator_layers}; "
                f"take a larger resolution or at most {most} layers."
            )
        return self

    @property
    def generator_blocks(self) -> int:
        """Residual blocks of a generator."""
        if self.residual_blocks is not None:
            return self.residual_blocks
        return 9 if self.resolution >= 256 else 6

    def stages(self, data: DataInfo) -> list[Stage]:
        images = self.constant_images + self.decay_images
        return [Stage("translation", images, self.batch_images, self.inputs(data), self.resolution)]

    def inputs(self, data: DataInfo) -> dict[str, Input]:
        return {domain: Input(domain=domain, resolution=self.resolution) for domain in DOMAINS}

    def learning_rate_factor(self, images_in_stage: int) -> float:
        """1 up to `constant_images`, then linearly down to 0."""
        into_decay = max(0, images_in_stage - self.constant_images)
        return max(0.0, 1 - into_decay / self.decay_images) if into_decay else 1.0


class ResidualBlock(nn.Module):
    """R256 in the paper's notation: two 3x3 convolutions with reflection padding, added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            ReflectingConv2d(channels, channels),
            instance_norm(channels),
            nn.ReLU(inplace=True),
            ReflectingConv2d(channels, channels),
            instance_norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Generator(nn.Module):
    """c7s1-64, d128, d256, R256 x 6 or 9, u128, u64, c7s1-3 (appendix, 7.2)."""

    def __init__(self, config: Config, channels: int):
        super().__init__()
        width = config.generator_channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=7, padding=3, padding_mode="reflect"),
            instance_norm(width),
            nn.ReLU(inplace=True),
            *self._halve(width),
            *self._halve(2 * width),
            *(ResidualBlock(4 * width) for _ in range(config.generator_blocks)),
            *self._double(4 * width),
            *self._double(2 * width),
            nn.ReflectionPad2d(3),
            NarrowConv2d(width, channels, kernel_size=7),
            nn.Tanh(),
        )

    @staticmethod
    def _halve(channels: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels, 2 * channels, kernel_size=3, stride=2, padding=1)
        return [conv, instance_norm(2 * channels), nn.ReLU(inplace=True)]

    @staticmethod
    def _double(channels: int) -> list[nn.Module]:
        conv = nn.ConvTranspose2d(channels, channels // 2, kernel_size=3, stride=2, padding=1, output_padding=1)
        return [conv, instance_norm(channels // 2), nn.ReLU(inplace=True)]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W) in [-1, 1]; H and W are multiples of 4."""
        return self.layers(images).float()


class ImagePool(nn.Module):
    """The last fakes, half of which take the place of new ones before a discriminator (Shrivastava et al. 2017).

    All workers hold the same pool: each sees the fakes of all, and what is drawn for them.
    """

    images: Tensor
    filled: Tensor

    def __init__(self, size: int, channels: int, resolution: int):
        super().__init__()
        self.size = size
        self.register_buffer("images", torch.zeros(size, channels, resolution, resolution))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def query(self, fakes: Tensor, context: Context) -> Tensor:
        """This worker's fakes (B, C, H, W), about half of them exchanged for earlier ones once the pool is full."""
        if not self.size:
            return fakes
        everyones = context.workers.gather(fakes)
        coins, slots = context.workers.gather(context.rand(len(fakes), 2)).unbind(1)
        answers = [self._exchange(*each) for each in zip(everyones.split(1), coins, slots, strict=True)]
        first = context.workers.rank * len(fakes)
        return torch.cat(answers[first : first + len(fakes)])

    def _exchange(self, fake: Tensor, coin: Tensor, slot: Tensor) -> Tensor:
        """One query, (1, C, H, W), without asking the device how full the pool is."""
        filling = self.filled < self.size
        swapping = ~filling & (coin < 0.5)
        index = torch.where(filling, self.filled, (slot * self.size).long()).view(1)
        kept = self.images.index_select(0, index)
        self.images.index_copy_(0, index, torch.where(filling | swapping, fake.to(kept.dtype), kept))
        self.filled += filling
        return torch.where(swapping, kept.to(fake.dtype), fake)


class CycleGAN(GenerativeModel):
    """One stage; in each step one update of both generators and one of both discriminators."""

    Config = Config
    config: Config
    density = Density.IMPLICIT
    title = "CycleGAN"
    unpaired = True
    domains = DOMAINS

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.generator_ab = Generator(config, data.channels)
        self.generator_ba = Generator(config, data.channels)
        discriminator = {"channels": config.discriminator_channels, "layers": config.discriminator_layers}
        self.discriminator_a = PatchDiscriminator(data.channels, **discriminator)
        self.discriminator_b = PatchDiscriminator(data.channels, **discriminator)
        self.pool_a = ImagePool(config.pool_images, data.channels, config.resolution)
        self.pool_b = ImagePool(config.pool_images, data.channels, config.resolution)
        self.adversarial = Adversarial(config)
        self.apply(draw_weights)

    def updates(self, stage: Stage) -> list[Update]:
        adam, factor = Adam(self.config.learning_rate, betas=(0.5, 0.999)), self.config.learning_rate_factor
        generators = [*self.generator_ab.parameters(), *self.generator_ba.parameters()]
        judges = [*self.discriminator_a.parameters(), *self.discriminator_b.parameters()]
        constrain = partial(self.adversarial.constrain, judges)
        return [
            Update("generators", generators, self.generators_loss, adam, schedule=factor),
            Update("discriminators", judges, self.discriminators_loss, adam, schedule=factor, after=constrain),
        ]

    def least_flops(self, passes: Mapping[str, Passes]) -> float:
        """A generator translates real images, which get no gradient, and the other's fakes, which do."""
        of_real = 2 if self.config.identity_weight else 1
        generators = (passes["generator_ab"], passes["generator_ba"])
        translating = sum(of_real * (g.forward + g.to_weights) + g.forward + g.to_both for g in generators)
        judges = (passes["discriminator_a"], passes["discriminator_b"])
        return translating + sum(map(self.adversarial.least_judging, judges))

    def preprocess(self, batch: Batch, context: Context) -> Batch:
        return {domain: self._augment(scaled(batch[domain]), context) for domain in self.domains}

    def _augment(self, images: Tensor, context: Context) -> Tensor:
        """Enlarge by `zoom`, crop at random, flip at random: one bilinear resampling for each image."""
        scale = torch.full((len(images),), 1 / self.config.zoom, device=images.device)
        shift_x, shift_y, coin = context.rand(len(images), 3).unbind(1)
        direction = torch.where(coin < 0.5, -1.0, 1.0) if self.config.flip else torch.ones_like(scale)
        zero, margin = torch.zeros_like(scale), 1 - scale
        row_x = torch.stack((direction * scale, zero, (2 * shift_x - 1) * margin), dim=1)
        row_y = torch.stack((zero, scale, (2 * shift_y - 1) * margin), dim=1)
        grid = F.affine_grid(torch.stack((row_x, row_y), dim=1), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def generators_loss(self, batch: Batch, context: Context) -> LossTerms:
        """Adversarial, cycle (eq. 2) and identity (section 5.2) terms of both directions."""
        a, b = batch["a"], batch["b"]
        terms: WeightedTerms = {}
        if self.config.identity_weight:
            fake_b, same_b = self.generator_ab(torch.cat((a, b))).chunk(2)
            fake_a, same_a = self.generator_ba(torch.cat((b, a))).chunk(2)
            identity = F.l1_loss(same_a, a) + F.l1_loss(same_b, b)
            terms["identity"] = (self.config.cycle_weight * self.config.identity_weight, identity)
        else:
            fake_b, fake_a = self.generator_ab(a), self.generator_ba(b)
        context.shared["fakes"] = {"a": fake_a.detach(), "b": fake_b.detach()}
        cycle = F.l1_loss(self.generator_ba(fake_b), a) + F.l1_loss(self.generator_ab(fake_a), b)
        terms["cycle"] = (self.config.cycle_weight, cycle)
        sides = {"a": (self.discriminator_a, a, fake_a), "b": (self.discriminator_b, b, fake_b)}
        for domain, (judge, real, fake) in sides.items():
            logits = judge(context.augmented(fake))
            terms[f"adversarial_{domain}"] = (1.0, self.adversarial.generator_loss(judge, real, logits, context))
        return LossTerms.weighted(terms)

    def discriminators_loss(self, batch: Batch, context: Context) -> LossTerms:
        fakes = context.shared["fakes"]
        fake_a, fake_b = self.pool_a.query(fakes["a"], context), self.pool_b.query(fakes["b"], context)
        return LossTerms.weighted(
            self._judge("a", self.discriminator_a, batch["a"], fake_a, context)
            | self._judge("b", self.discriminator_b, batch["b"], fake_b, context)
        )

    def _judge(
        self, domain: str, discriminator: nn.Module, real: Tensor, fake: Tensor, context: Context
    ) -> WeightedTerms:
        real, fake = (context.augmented(images) for images in (real, fake))
        logits_real, logits_fake = discriminator(torch.cat((real, fake))).chunk(2)
        terms = self.adversarial.discriminator_terms(discriminator, real, fake, logits_real, logits_fake, context)
        return {f"{name}_{domain}": term for name, term in terms.items()}

    @torch.no_grad()
    def translate(self, images: Tensor, target: str) -> Tensor:
        """Images of one domain, (n, C, H, W) in [-1, 1], as if of the other, `target`."""
        if target not in self.domains:
            raise unknown("domain", target, self.domains)
        return (self.generator_ab if target == "b" else self.generator_ba)(images)


def draw_weights(module: nn.Module) -> None:
    """N(0, 0.02), biases 0 (appendix, 7.1)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
