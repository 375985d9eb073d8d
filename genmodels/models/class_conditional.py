"""What the class-conditional GANs share: everything but their networks.

A step shows the discriminator one batch; every `discriminator_steps`-th step updates the generator too, with the
discriminator just updated and the fakes that it was shown. So each update of the discriminator meets data of its own,
whatever the ratio, and images shown are images seen by the discriminator.
"""

import math
from collections.abc import Mapping
from functools import partial

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from genmodels.losses import AdversarialName
from genmodels.models.adversarial import (
    Adversarial,
    AdversarialConfig,
    WeightedTerms,
    measure_standing_statistics,
    shared_fakes,
)
from genmodels.models.base import (
    Adam,
    Batch,
    ConditionalConfig,
    Context,
    DataInfo,
    DecayConfig,
    Density,
    Ema,
    GenerativeModel,
    LossTerms,
    Passes,
    Stage,
    Update,
)
from genmodels.nn.convolution import input_gradient_differentiable


class ClassConditionalConfig(DecayConfig, AdversarialConfig, ConditionalConfig):
    """The settings that these models share; the defaults are those of Miyato et al. (2018) for CIFAR-10."""

    stage = "adversarial"

    resolution: int = Field(32, ge=8, le=256, description="a power of two")
    latent: int = Field(128, ge=1, description="size of the latent vector")
    conditional: bool = Field(True, description="the networks are told the class")
    adversarial_loss: AdversarialName = "hinge"
    generator_learning_rate: float = Field(2e-4, gt=0)
    discriminator_learning_rate: float = Field(2e-4, gt=0)
    betas: tuple[float, float] = Field((0.0, 0.9), description="Adam's")
    discriminator_steps: int = Field(5, ge=1, description="updates of the discriminator for one of the generator")
    batch_images: int = Field(64, ge=1, description="of one update, over all workers and micro-batches")
    images: int = Field(32_000_000, ge=1, description="shown in all: images of a batch x updates of the discriminator")
    ema_half_life_images: float = Field(0.0, ge=0, description="of the generator's average; 0 keeps none")
    truncation: float | None = Field(None, gt=0, description="largest |z| of a sample; none given: no limit")

    @field_validator("resolution")
    @classmethod
    def _is_a_power_of_two(cls, resolution: int) -> int:
        if resolution & (resolution - 1):
            raise ValueError(f"{resolution} is not a power of two; take 8, 16, 32, ... 256")
        return resolution

    @property
    def doublings(self) -> int:
        """How often 4x4 pixels are doubled each way."""
        return self.resolution.bit_length() - 3


class ClassConditionalGAN(GenerativeModel):
    """A generator (latents and labels -> images) against a discriminator (images and labels -> logits). A model makes
    the two in its `__init__`; labels are None if it is not conditional. Fakes are of the classes of the real images
    beside them, so that classes are as frequent among them as in the data."""

    Config = ClassConditionalConfig
    config: ClassConditionalConfig
    density = Density.IMPLICIT
    generator: nn.Module
    discriminator: nn.Module

    def __init__(self, config: ClassConditionalConfig, data: DataInfo):
        super().__init__(config, data)
        self.classes = config.classes(data)
        self.adversarial = Adversarial(config)
        if config.ema_half_life_images:
            self.ema = Ema(("generator",), half_life_images=config.ema_half_life_images)

    def updates(self, stage: Stage) -> list[Update]:
        config, discriminator = self.config, list(self.discriminator.parameters())
        return [
            Update(
                "discriminator",
                discriminator,
                self.discriminator_loss,
                Adam(config.discriminator_learning_rate, betas=config.betas),
                schedule=config.learning_rate_factor,
                after=partial(self.adversarial.constrain, discriminator),
            ),
            Update(
                "generator",
                list(self.generator.parameters()),
                self.generator_loss,
                Adam(config.generator_learning_rate, betas=config.betas),
                interval_steps=config.discriminator_steps,
                schedule=config.learning_rate_factor,
            ),
        ]

    def least_flops(self, passes: Mapping[str, Passes]) -> float:
        """Both updates of a step judge the same fakes."""
        steps, generator = self.config.discriminator_steps, passes["generator"]
        judging = self.adversarial.least_judging(passes["discriminator"], steps)
        return judging + generator.forward + generator.to_weights / steps

    def discriminator_loss(self, batch: Batch, context: Context) -> LossTerms:
        labels = batch.get("label")
        real = context.augmented(batch["image"])
        fake = context.augmented(self._fakes(batch, context, to_learn=False).detach())
        logits = self.discriminator(torch.cat((real, fake)), None if labels is None else labels.repeat(2))
        logits_real, logits_fake = logits.chunk(2)
        critic = partial(self._critic, labels=labels)
        terms = self.adversarial.discriminator_terms(critic, real, fake, logits_real, logits_fake, context)
        return LossTerms.weighted(terms)

    def generator_loss(self, batch: Batch, context: Context) -> LossTerms:
        return LossTerms.weighted(self.generator_terms(batch, context))

    def generator_terms(self, batch: Batch, context: Context) -> WeightedTerms:
        """What the generator minimises; a model may add terms of its own."""
        labels = batch.get("label")
        fake = context.augmented(self._fakes(batch, context, to_learn=True))
        logits = self.discriminator(fake, labels)
        loss = self.adversarial.generator_loss(partial(self._critic, labels=labels), batch["image"], logits, context)
        return {"adversarial": (1.0, loss)}

    def _critic(self, images: Tensor, labels: Tensor | None) -> Tensor:
        with input_gradient_differentiable():
            return self.discriminator(images, labels)

    def _fakes(self, batch: Batch, context: Context, *, to_learn: bool) -> Tensor:
        latents = partial(context.randn, len(batch["image"]), self.config.latent)
        generator = partial(self.generator, labels=batch.get("label"))
        learns = context.step % self.config.discriminator_steps == 0
        return shared_fakes(context, latents, generator, to_learn=to_learn, learns=learns)

    def prepare_evaluation(self) -> None:
        measure_standing_statistics(self, self.generator, self.config.resolution)

    def prior(self, n: int, *, generator: torch.Generator) -> Tensor:
        """n latents, (n, Z)."""
        drawn = latents(n, self.config.latent, self.config.truncation, generator)
        return drawn.to(next(self.parameters()).device)

    @torch.no_grad()
    def decode(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents (n, Z), and labels (n,) if it is conditional, to images (n, C, H, W) in [-1, 1]."""
        return self.generator(
            codes, labels.to(codes.device) if self.config.conditional and labels is not None else None
        )

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """n images, (n, C, H, W) in [-1, 1]; of random labels if it needs them."""
        codes = self.prior(n, generator=generator)
        if self.config.conditional and labels is None:
            labels = torch.randint(self.data.classes, (n,), generator=generator, device=generator.device)
        return self.decode(codes, labels)


def latents(n: int, size: int, truncation: float | None, generator: torch.Generator) -> Tensor:
    """Standard normal, (n, size), given that |z| <= truncation: what drawing again whatever lies outside would give
    (Brock et al. 2019, section 3.1), by the inverse of the distribution function instead."""
    if truncation is None:
        return torch.randn(n, size, generator=generator, device=generator.device)
    uniform = torch.rand(n, size, generator=generator, device=generator.device) * 2 - 1
    inside = math.erf(truncation / math.sqrt(2))
    return (math.sqrt(2) * torch.erfinv(uniform * inside)).clamp(-truncation, truncation)
