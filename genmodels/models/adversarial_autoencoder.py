"""Adversarial autoencoder (Makhzani, Shlens, Jaitly, Goodfellow & Frey 2016).

An autoencoder whose codes a discriminator cannot tell from draws of a prior, so that decoding the prior makes images.
Any prior will do that can be drawn from; with labels, each class has its own part of it (section 2.3).
B batch, C channels, H height, W width, Z latent, K components of the prior.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from genmodels.models.adversarial import Adversarial, AdversarialConfig
from genmodels.models.autoencoding import AutoencodingConfig, AutoencodingModel
from genmodels.models.base import (
    Adam,
    Batch,
    ConditionalConfig,
    Context,
    DataInfo,
    DecayConfig,
    Density,
    Ema,
    LossTerms,
    Stage,
    Update,
    scaled,
)
from genmodels.nn.coders import dense
from genmodels.nn.priors import PRIORS

UNKNOWN = -1  # the label of an image whose class the model is not told


class Config(AutoencodingConfig, AdversarialConfig, ConditionalConfig, DecayConfig):
    """The defaults are the paper's networks for MNIST (appendix A), with Adam in place of SGD with momentum."""

    stage = "adversarial"
    judged = "codes"

    hidden: tuple[int, ...] = Field((1000, 1000), description="sizes of the coders' dense layers")
    discriminator_hidden: tuple[int, ...] = (1000, 1000)
    latent: int = Field(8, ge=1)
    prior: Literal["gaussian", "uniform", "mixture_of_gaussians", "swiss_roll"] = "gaussian"
    components: int = Field(10, ge=1, description="parts of the prior; with labels, as many as there are classes")
    conditional: bool = Field(False, description="each class has its own component of the prior")
    labelled_share: float = Field(1.0, ge=0, le=1, description="of the images, which keep their labels")
    learning_rate: float = Field(1e-3, gt=0, description="of the reconstruction")
    adversarial_learning_rate: float = Field(2e-4, gt=0, description="of discriminator and encoder")
    ema_half_life_images: float = Field(0.0, ge=0, description="of the averaged coders; 0 keeps no average")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "cpu": {  # grey 32x32
            "hidden": (256, 256),
            "discriminator_hidden": (256, 256),
            "adversarial_learning_rate": 4e-4,
            "linear_decay": True,
            "ema_half_life_images": 40_000,
            "batch_images": 64,
            "images": 2_000_000,
        },
        "demo": {
            "hidden": (256, 256),
            "discriminator_hidden": (128, 128),
            "latent": 6,
            "adversarial_learning_rate": 4e-4,
            "linear_decay": True,
            "ema_half_life_images": 10_000,
            "batch_images": 64,
            "images": 400_000,
        },
        "petals": {
            "hidden": (256, 256),
            "discriminator_hidden": (128, 128),
            "latent": 2,
            "prior": "mixture_of_gaussians",
            "conditional": True,
            "adversarial_learning_rate": 1e-3,
            "batch_images": 64,
            "images": 400_000,
        },
    }

    @model_validator(mode="after")
    def _prior_fits(self) -> "Config":
        prior = PRIORS[self.prior]
        if self.latent % prior.multiple:
            raise ValueError(f"prior={self.prior} fills pairs of dimensions; latent must be even, not {self.latent}.")
        if self.conditional and not prior.by_component:
            able = " or ".join(name for name, other in PRIORS.items() if other.by_component)
            raise ValueError(f"conditional=true needs a prior with components ({able}), not {self.prior}.")
        return self


class AdversarialAutoencoder(AutoencodingModel):
    """One stage; in each step the autoencoder, the discriminator of codes, and the encoder against it."""

    Config = Config
    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]
    density = Density.IMPLICIT
    title = "Adversarial autoencoder"

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data, code=config.latent)
        self.classes = config.classes(data)
        told = self.classes + 1 if config.conditional else 0
        self.discriminator = dense([config.latent + told, *config.discriminator_hidden, 1])
        self.adversarial = Adversarial(config)
        if config.ema_half_life_images:
            self.ema = Ema(("encoder", "decoder"), half_life_images=config.ema_half_life_images)

    def updates(self, stage: Stage) -> list[Update]:
        adam = Adam(self.config.learning_rate)
        against = Adam(self.config.adversarial_learning_rate, betas=(0.5, 0.999))
        encoder, decoder = list(self.encoder.parameters()), list(self.decoder.parameters())
        judge, factor = list(self.discriminator.parameters()), self.config.learning_rate_factor
        constrain = partial(self.adversarial.constrain, judge)
        return [
            Update("reconstruction", [*encoder, *decoder], self.reconstruction_loss, adam, schedule=factor),
            Update("discriminator", judge, self.discriminator_loss, against, schedule=factor, after=constrain),
            Update("encoder", encoder, self.encoder_loss, against, schedule=factor),
        ]

    def preprocess(self, batch: Batch, context: Context) -> Batch:
        """Which images have no label to the model is decided by their pixels, so that it is always the same ones."""
        batch = dict(batch)
        if "label" in batch and self.config.labelled_share < 1:
            known = pseudorandom(batch["image"]) < self.config.labelled_share
            batch["label"] = torch.where(known, batch["label"], UNKNOWN)
        return batch | {"image": scaled(batch["image"])}

    def discriminator_loss(self, batch: Batch, context: Context) -> LossTerms:
        """Draws of the prior are real; codes are not."""
        real, fake, labels = self._draws(batch, context), self._codes(batch, context).detach(), self._labels(batch)
        logits_real, logits_fake = self._judge(torch.cat((real, fake)), labels.repeat(2)).chunk(2)
        critic = partial(self._judge, labels=labels)
        terms = self.adversarial.discriminator_terms(critic, real, fake, logits_real, logits_fake, context)
        return LossTerms.weighted(terms)

    def encoder_loss(self, batch: Batch, context: Context) -> LossTerms:
        critic = partial(self._judge, labels=self._labels(batch))
        logits = critic(self._codes(batch, context))
        loss = self.adversarial.generator_loss(critic, self._draws(batch, context), logits, context)
        return LossTerms.weighted({"adversarial": (1.0, loss)})

    def _codes(self, batch: Batch, context: Context) -> Tensor:
        """After the reconstruction's update; the discriminator's does not change the encoder."""
        if "codes" not in context.shared:
            context.shared["codes"] = self.encode(batch["image"])
        return context.shared["codes"]

    def _draws(self, batch: Batch, context: Context) -> Tensor:
        """Of the prior, each from its image's component; the same for both players."""
        if "draws" not in context.shared:
            size = len(batch["image"]), self.config.latent
            normal, uniform = context.randn(*size), context.rand(*size)
            context.shared["draws"] = self._prior(normal, uniform, self._labels(batch))
        return context.shared["draws"]

    def _labels(self, batch: Batch) -> Tensor:
        image = batch["image"]
        return batch.get("label", torch.full((len(image),), UNKNOWN, device=image.device))

    def _prior(self, normal: Tensor, uniform: Tensor, labels: Tensor) -> Tensor:
        components = self.classes or self.config.components
        return PRIORS[self.config.prior].codes(normal, uniform, labels, components)

    def _judge(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Codes (B, Z) and, if conditional, their labels (B,), of which `UNKNOWN` is one more class -> logits (B,)."""
        if self.config.conditional:
            told = F.one_hot(torch.where(labels == UNKNOWN, self.classes, labels), self.classes + 1)
            codes = torch.cat((codes, told.to(codes.dtype)), dim=1)
        return self.discriminator(codes).squeeze(1)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """n images, (n, C, H, W), about in [-1, 1]; of random labels if it knows any."""
        return self.decode(self.prior(n, labels=labels, generator=generator))

    @property
    def prior_in_pairs(self) -> bool:
        """Whether the prior is a shape in the plane, once in each pair of dimensions."""
        return PRIORS[self.config.prior].multiple == 2

    def prior(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """n codes, (n, Z), of the components of labels (n,) or of random ones."""
        device = next(self.parameters()).device
        size = n, self.config.latent
        normal = torch.randn(*size, generator=generator, device=generator.device).to(device)
        uniform = torch.rand(*size, generator=generator, device=generator.device).to(device)
        if self.config.conditional and labels is None:
            labels = torch.randint(self.classes, (n,), generator=generator, device=generator.device)
        unknown = torch.full((n,), UNKNOWN, device=device)
        return self._prior(normal, uniform, unknown if labels is None else labels.to(device))

    def posterior(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """The code of each image: the encoder draws nothing."""
        return self.encode(images)

    def decode(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, Z) -> (B, C, H, W), about in [-1, 1]; a code says by itself what class it is of."""
        return super().decode(codes)


def pseudorandom(images: Tensor) -> Tensor:
    """A number in [0, 1) for each of (B, C, H, W) uint8 images, (B,), that depends on its pixels alone."""
    pixels = images.flatten(1).long()
    places = torch.arange(1, pixels.shape[1] + 1, device=images.device)
    return ((pixels * (places * 2_654_435_761 % 65_521)).sum(dim=1) * 40_503 % 65_521) / 65_521
