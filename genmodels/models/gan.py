"""Generative adversarial nets (Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair et al., NIPS 2014).

`GAN` is the game of the paper's equation 1 with fully connected players. Others that draw all of an image from one
latent vector play the same game with players of their own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from genmodels.losses import binary_discriminator
from genmodels.models.adversarial import Adversarial, AdversarialConfig, measure_standing_statistics, shared_fakes
from genmodels.models.base import (
    Adam,
    Batch,
    Context,
    DataInfo,
    Density,
    Ema,
    GenerativeModel,
    LossTerms,
    OneStageConfig,
    Passes,
    Stage,
    Update,
)
from genmodels.nn.batch_norm import has_batch_norms


class GameConfig(OneStageConfig, AdversarialConfig):
    """How the two players take turns."""

    stage = "adversarial"

    latent: int = Field(100, ge=1, description="size of the latent vector")
    generator_learning_rate: float = Field(2e-4, gt=0)
    discriminator_learning_rate: float = Field(2e-4, gt=0)
    adam_betas: tuple[float, float] = (0.5, 0.999)
    discriminator_steps: int = Field(1, ge=1, description="updates of the discriminator for one of the generator")
    batch_images: int = Field(128, ge=1)
    images: int = Field(ge=1, description="images shown in all")
    ema_half_life_images: float = Field(0.0, ge=0, description="of the averaged generator; 0 keeps no average")


class Config(GameConfig):
    """The defaults are those of the authors' MNIST run (50,000 images, here 500 times), with Adam for its momentum."""

    learns_points = True

    resolution: int = Field(28, ge=1)
    generator_units: int = Field(1200, ge=1, description="of each hidden layer")
    discriminator_units: int = Field(240, ge=1, description="maxout units of each hidden layer")
    discriminator_pieces: int = Field(5, ge=1, description="linear maps of which a maxout unit takes the largest")
    discriminator_initial_weights: float = Field(0.005, gt=0, description="bound of their uniform distribution")
    input_dropout: float = Field(0.2, ge=0, lt=1, description="share of the discriminator's inputs left out")
    hidden_dropout: float = Field(0.5, ge=0, lt=1, description="share of its hidden units left out")
    batch_images: int = Field(100, ge=1)
    images: int = Field(25_000_000, ge=1, description="images shown in all")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "cpu": {
            "resolution": 32,
            "hidden_dropout": 0.3,
            "input_dropout": 0.0,
            "images": 250_000,
            "ema_half_life_images": 5_000,
        },
        "demo": {
            "resolution": 8,
            "latent": 32,
            "generator_units": 256,
            "discriminator_units": 64,
            "hidden_dropout": 0.3,
            "input_dropout": 0.0,
            "images": 400_000,
            "ema_half_life_images": 5_000,
        },
        "points": {
            "resolution": 1,
            "latent": 2,
            "generator_units": 400,
            "discriminator_units": 128,
            "discriminator_pieces": 2,
            "discriminator_initial_weights": 0.3,
            "hidden_dropout": 0.0,
            "input_dropout": 0.0,
            "generator_learning_rate": 1e-3,
            "discriminator_learning_rate": 1e-3,
            "r1_gamma": 0.01,
            "r1_interval_steps": 1,
            "batch_images": 256,
            "images": 1_000_000,
            "ema_half_life_images": 10_000,
        },
    }


class Draws(Protocol):
    """Where random numbers come from: the `Context` of a loss, or `FromGenerator`."""

    def randn(self, rows: int, *shape: int) -> Tensor: ...

    def rand(self, rows: int, *shape: int) -> Tensor: ...


@dataclass(frozen=True)
class FromGenerator:
    """The draws of a generator, on a device."""

    generator: torch.Generator
    device: torch.device

    def randn(self, rows: int, *shape: int) -> Tensor:
        """Standard normal, (rows, *shape)."""
        drawn = torch.randn(rows, *shape, generator=self.generator, device=self.generator.device)
        return drawn.to(self.device)

    def rand(self, rows: int, *shape: int) -> Tensor:
        """Uniform on [0, 1), (rows, *shape)."""
        drawn = torch.rand(rows, *shape, generator=self.generator, device=self.generator.device)
        return drawn.to(self.device)


class Generator(nn.Module):
    """Two rectified layers; tanh is the authors' sigmoid for images in [-1, 1]."""

    def __init__(self, config: Config, channels: int):
        super().__init__()
        self.image = (channels, config.resolution, config.resolution)
        self.layers = nn.Sequential(
            nn.Linear(config.latent, config.generator_units),
            nn.ReLU(inplace=True),
            nn.Linear(config.generator_units, config.generator_units),
            nn.ReLU(inplace=True),
            nn.Linear(config.generator_units, math.prod(self.image)),
            nn.Tanh(),
        )
        draw_uniform(self, 0.05)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, Z) -> images (B, C, H, W) in [-1, 1]."""
        return self.layers(latents).float().unflatten(1, self.image)


class Maxout(nn.Module):
    """The largest of several linear maps, unit by unit (Goodfellow et al. 2013)."""

    def __init__(self, inputs: int, units: int, pieces: int):
        super().__init__()
        self.pieces = pieces
        self.linear = nn.Linear(inputs, units * pieces)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, units)."""
        return self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)


class Discriminator(nn.Module):
    """Two maxout layers with dropout, whose masks come from the context; without one nothing is left out."""

    def __init__(self, config: Config, channels: int):
        super().__init__()
        units, pieces = config.discriminator_units, config.discriminator_pieces
        self.first = Maxout(channels * config.resolution**2, units, pieces)
        self.second = Maxout(units, units, pieces)
        self.logit = nn.Linear(units, 1)
        self.input_dropout, self.hidden_dropout = config.input_dropout, config.hidden_dropout
        draw_uniform(self, config.discriminator_initial_weights)

    def forward(self, images: Tensor, context: Context | None = None) -> Tensor:
        """(B, C, H, W) -> logits (B,)."""
        x = dropout(images.flatten(1), self.input_dropout, context)
        x = dropout(self.first(x), self.hidden_dropout, context)
        x = dropout(self.second(x), self.hidden_dropout, context)
        return self.logit(x).squeeze(1)


def dropout(x: Tensor, share: float, context: Context | None) -> Tensor:
    """(B, units) with about that share of the units set to zero and the others scaled up."""
    if not share or context is None:
        return x
    return x * (context.rand(*x.shape) >= share) / (1 - share)


def draw_uniform(network: nn.Module, bound: float) -> None:
    """Weights uniform within the bound, biases 0."""
    for name, parameter in network.named_parameters():
        if name.endswith("weight"):
            nn.init.uniform_(parameter, -bound, bound)
        else:
            nn.init.zeros_(parameter)


class GAN(GenerativeModel):
    """One stage; in each step an update of the discriminator, and in each or every so many one of the generator."""

    Config = Config
    Generator: ClassVar[type[nn.Module]] = Generator
    Discriminator: ClassVar[type[nn.Module]] = Discriminator
    config: GameConfig
    density = Density.IMPLICIT
    title = "GAN"

    def __init__(self, config: GameConfig, data: DataInfo):
        super().__init__(config, data)
        self.generator = self.Generator(config, data.channels)
        self.discriminator = self.Discriminator(config, data.channels)
        self.adversarial = Adversarial(config)
        if config.ema_half_life_images:
            self.ema = Ema(("generator",), half_life_images=config.ema_half_life_images)

    def updates(self, stage: Stage) -> list[Update]:
        config = self.config
        return [
            Update(
                "discriminator",
                list(self.discriminator.parameters()),
                self.discriminator_loss,
                Adam(config.discriminator_learning_rate, config.adam_betas),
                after=self.constrain,
            ),
            Update(
                "generator",
                list(self.generator.parameters()),
                self.generator_loss,
                Adam(config.generator_learning_rate, config.adam_betas),
                interval_steps=config.discriminator_steps,
            ),
        ]

    def constrain(self) -> None:
        """Clips the weights of what has to be Lipschitz, if the loss asks for it."""
        self.adversarial.constrain(self.discriminator.parameters())

    def least_flops(self, passes: Mapping[str, Passes]) -> float:
        """Both updates of a step judge the same fakes."""
        steps, generator = self.config.discriminator_steps, passes["generator"]
        judging = self.adversarial.least_judging(passes["discriminator"], steps)
        return judging + generator.forward + generator.to_weights / steps

    def latents(self, n: int, draws: Draws) -> Tensor:
        """(n, Z) from the prior, a standard normal."""
        return draws.randn(n, self.config.latent)

    def judge(self, images: Tensor, context: Context) -> Tensor:
        """The discriminator's logits, (B,), in training."""
        return self.discriminator(images, context)

    def discriminator_loss(self, batch: Batch, context: Context) -> LossTerms:
        """-V(D, G) of equation 1, logged with the Jensen-Shannon divergence that it implies; or another loss."""
        real = context.augmented(batch["image"])
        fake = context.augmented(self.fakes(batch, context, to_learn=False).detach())
        critic = partial(self.judge, context=context)
        if has_batch_norms(self.discriminator):  # in which real images and fakes must not meet
            logits_real, logits_fake = critic(real), critic(fake)
        else:  # by turns, so that what is drawn for dropout goes by the row of the global batch
            logits_real, logits_fake = critic(torch.stack((real, fake), dim=1).flatten(0, 1)).view(-1, 2).unbind(1)
        loss = LossTerms.weighted(
            self.adversarial.discriminator_terms(critic, real, fake, logits_real, logits_fake, context)
        )
        if self.adversarial.loss.discriminator is not binary_discriminator:
            return loss
        value = -loss.terms["adversarial"]
        return replace(loss, terms={**loss.terms, "value": value, "jensen_shannon": jensen_shannon(value)})

    def generator_loss(self, batch: Batch, context: Context) -> LossTerms:
        critic = partial(self.judge, context=context)
        logits_fake = critic(context.augmented(self.fakes(batch, context, to_learn=True)))
        loss = self.adversarial.generator_loss(critic, batch["image"], logits_fake, context)
        return LossTerms.weighted({"adversarial": (1.0, loss)})

    def fakes(self, batch: Batch, context: Context, *, to_learn: bool) -> Tensor:
        """One for each image of the batch; see `shared_fakes`."""
        latents = partial(self.latents, len(batch["image"]), context)
        learns = context.step % self.config.discriminator_steps == 0
        return shared_fakes(context, latents, self.generator, to_learn=to_learn, learns=learns)

    def prepare_evaluation(self) -> None:
        measure_standing_statistics(self, self.generator, self.config.resolution)

    def prior(self, n: int, *, generator: torch.Generator) -> Tensor:
        """n latents, (n, Z)."""
        return self.latents(n, FromGenerator(generator, next(self.generator.parameters()).device))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Latents (n, Z) to images (n, C, H, W) in [-1, 1]."""
        return self.generator(codes)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """n images, (n, C, H, W) in [-1, 1]; there are no labels."""
        return self.decode(self.prior(n, generator=generator))


def jensen_shannon(value: Tensor) -> Tensor:
    """(V + log 4) / 2, in nats: the divergence of data and generator if the discriminator is optimal (theorem 1), and
    otherwise a lower bound of it."""
    return (value + math.log(4)) / 2
