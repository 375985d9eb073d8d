"""InfoGAN (Chen, Duan, Houthooft, Schulman, Sutskever & Abbeel, NIPS 2016): latent codes that mean something.

Part of the latent vector are codes c, categorical and continuous. Both players also maximise a lower bound of the
mutual information of codes and images, L_I = E log Q(c | G(z, c)) + H(c) (equation 5), where Q shares the
discriminator's layers.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.models import gan
from genmodels.models.adversarial import WeightedTerms
from genmodels.models.base import Batch, Context, LossTerms, Passes
from genmodels.nn.normalization import BatchNorm


class Config(gan.GameConfig):
    """The defaults are those of the authors' MNIST run: 50 epochs of 100 batches of 128."""

    resolution: int = Field(28, ge=8, multiple_of=4)
    latent: int = Field(62, ge=1, description="size of the noise, the part of the latent vector beside the codes")
    categorical_codes: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (10,), description="categories of each categorical code"
    )
    continuous_codes: int = Field(2, ge=0, description="codes that are uniform on [-1, 1)")
    categorical_weight: float = Field(1.0, ge=0, description="of the mutual information of the categorical codes")
    continuous_weight: float = Field(1.0, ge=0, description="of that of the continuous codes")
    hidden_units: int = Field(1024, ge=1, description="of the fully connected layers")
    channels: int = Field(64, ge=1, description="at half the resolution; twice as many at a quarter")
    recognition_units: int = Field(128, ge=1, description="of Q's own hidden layer")
    generator_learning_rate: float = Field(1e-3, gt=0)
    images: int = Field(640_000, ge=1, description="images shown in all")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "cpu": {
            "resolution": 32,
            "channels": 32,
            "batch_images": 64,
            "images": 100_000,
            "ema_half_life_images": 5_000,
        },
        "demo": {
            "resolution": 8,
            "latent": 16,
            "hidden_units": 256,
            "channels": 32,
            "recognition_units": 64,
            "batch_images": 64,
            "images": 200_000,
            "ema_half_life_images": 5_000,
        },
    }

    @property
    def code_size(self) -> int:
        """Length of the codes' part of the latent vector: categories one-hot, then continuous codes."""
        return sum(self.categorical_codes) + self.continuous_codes


class Generator(nn.Sequential):
    """Table 1, right: two fully connected layers, then two transposed convolutions."""

    def __init__(self, config: Config, channels: int):
        side, width = config.resolution // 4, config.channels
        super().__init__(
            nn.Linear(config.code_size + config.latent, config.hidden_units),
            BatchNorm(config.hidden_units),
            nn.ReLU(inplace=True),
            nn.Linear(config.hidden_units, 2 * width * side**2),
            BatchNorm(2 * width * side**2),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (2 * width, side, side)),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            BatchNorm(width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        self.apply(draw_weights)

    def forward(self, input: Tensor) -> Tensor:
        """Codes and noise, (B, Z), to images (B, C, H, W) in [-1, 1]."""
        return super().forward(input).float()


class Discriminator(nn.Module):
    """Table 1, left: the discriminator's logit, and what Q makes of the codes, from the same features."""

    def __init__(self, config: Config, channels: int):
        super().__init__()
        width, hidden, own = config.channels, config.hidden_units, config.recognition_units
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            BatchNorm(2 * width),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Flatten(),
            nn.Linear(2 * width * (config.resolution // 4) ** 2, hidden),
            BatchNorm(hidden),
            nn.LeakyReLU(0.1, inplace=True),
        )
        self.logit = nn.Linear(hidden, 1)
        self.recognition = nn.Sequential(
            nn.Linear(hidden, own), BatchNorm(own), nn.LeakyReLU(0.1, inplace=True), nn.Linear(own, config.code_size)
        )
        self.apply(draw_weights)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> logits (B,); and of the codes, (B, code_size), the logits of the categories and the means."""
        features = self.trunk(images)
        return self.logit(features).squeeze(1), self.recognition(features)


@torch.no_grad()
def draw_weights(module: nn.Module) -> None:
    """N(0, 0.02), the scales of batch norm N(1, 0.02), biases 0 (the authors' code)."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | BatchNorm):
        module.weight.normal_(1.0 if isinstance(module, BatchNorm) else 0.0, 0.02)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]


class InfoGAN(gan.GAN):
    """One stage, two updates. Q is trained with the discriminator, as in the authors' code."""

    Config = Config
    Generator = Generator
    Discriminator = Discriminator
    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]
    title = "InfoGAN"

    def counted(self) -> dict[str, nn.Module]:
        """Q's own layers beside the discriminator that they are part of."""
        return self.networks() | {"recognition": self.discriminator.get_submodule("recognition")}

    def least_flops(self, passes: Mapping[str, Passes]) -> float:
        """The codes of real images are not asked for."""
        recognising = passes["recognition"].forward + passes["recognition"].to_both
        return super().least_flops(passes) - recognising

    def latents(self, n: int, draws: gan.Draws) -> Tensor:
        """(n, Z): each categorical code one-hot, the continuous codes and the noise uniform on [-1, 1)."""
        kinds = self.config.categorical_codes
        uniform = draws.rand(n, len(kinds) + self.config.continuous_codes + self.config.latent)
        chosen = [F.one_hot((uniform[:, i] * kind).long(), kind).float() for i, kind in enumerate(kinds)]
        return torch.cat((*chosen, 2 * uniform[:, len(kinds) :] - 1), dim=1)

    def constrain(self) -> None:
        """Not those of Q's own layers, which are no part of it."""
        for part in ("trunk", "logit"):
            self.adversarial.constrain(self.discriminator.get_submodule(part).parameters())

    def judge(self, images: Tensor, context: Context) -> Tensor:
        return self.discriminator(images)[0]

    def discriminator_loss(self, batch: Batch, context: Context) -> LossTerms:
        """The discriminator's side of equation 6."""
        real = context.augmented(batch["image"])
        fake = context.augmented(self.fakes(batch, context, to_learn=False).detach())
        critic = partial(self.judge, context=context)
        logits_real, (logits_fake, recognised) = critic(real), self.discriminator(fake)
        terms = self.adversarial.discriminator_terms(critic, real, fake, logits_real, logits_fake, context)
        return LossTerms.weighted(terms | self._information(recognised, context.shared["latents"]))

    def generator_loss(self, batch: Batch, context: Context) -> LossTerms:
        """The generator's side of equation 6."""
        fake = context.augmented(self.fakes(batch, context, to_learn=True))
        logits_fake, recognised = self.discriminator(fake)
        critic = partial(self.judge, context=context)
        loss = self.adversarial.generator_loss(critic, batch["image"], logits_fake, context)
        terms: WeightedTerms = {"adversarial": (1.0, loss)}
        return LossTerms.weighted(terms | self._information(recognised, context.shared["latents"]))

    def _information(self, recognised: Tensor, latents: Tensor) -> WeightedTerms:
        sizes = [*self.config.categorical_codes, self.config.continuous_codes]
        *logits, means = recognised.split(sizes, dim=1)
        *chosen, continuous = latents[:, : self.config.code_size].split(sizes, dim=1)
        terms: WeightedTerms = {}
        if chosen:
            bounds = [categorical_information(*pair) for pair in zip(logits, chosen, strict=True)]
            terms["categorical_information"] = (-self.config.categorical_weight, torch.stack(bounds).sum())
        if self.config.continuous_codes:
            terms["continuous_information"] = (-self.config.continuous_weight, uniform_information(means, continuous))
        return terms

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        codes: Tensor | None = None,
        generator: torch.Generator,
    ) -> Tensor:
        """n images, (n, C, H, W) in [-1, 1]. `codes`, (n, code_size), take the place of random ones; `labels`, (n,), of
        the first categorical code."""
        latents = self.prior(n, generator=generator)
        if codes is not None:
            latents[:, : self.config.code_size] = codes
        if labels is not None:
            kind = self.config.categorical_codes[0]
            latents[:, :kind] = F.one_hot(labels, kind)
        return self.decode(latents)

    @property
    def categorical_codes(self) -> tuple[int, ...]:
        """Categories of each categorical code."""
        return self.config.categorical_codes

    @property
    def continuous_codes(self) -> int:
        """How many there are."""
        return self.config.continuous_codes

    @property
    def clusters(self) -> int:
        """Categories of the first categorical code; 0 if there is none."""
        return self.config.categorical_codes[0] if self.config.categorical_codes else 0

    def cluster(self, images: Tensor) -> Tensor:
        """The category of that code for which Q takes each of (n, C, H, W) images in [-1, 1]: (n,) int64."""
        return self.recognise(images)[:, : self.clusters].argmax(dim=1)

    @torch.no_grad()
    def recognise(self, images: Tensor) -> Tensor:
        """What Q takes the codes of images, (n, C, H, W) in [-1, 1], to be: probabilities of the categories, means of
        the continuous codes, (n, code_size)."""
        *logits, means = self.discriminator(images)[1].split(
            [*self.config.categorical_codes, self.config.continuous_codes], dim=1
        )
        return torch.cat((*(each.softmax(1) for each in logits), means), dim=1)


def categorical_information(logits: Tensor, chosen: Tensor) -> Tensor:
    """L_I of a uniform categorical code, in nats, at most log K: Q's logits (B, K) and the codes one-hot, (B, K)."""
    return (chosen * logits.log_softmax(1)).sum(1).mean() + math.log(logits.shape[1])


def uniform_information(means: Tensor, codes: Tensor) -> Tensor:
    """L_I of codes that are uniform on [-1, 1), in nats, summed over the codes: Q is normal with those means, (B, N),
    and variance 1, which keeps it from growing without end; at most log 2 - log(2 pi) / 2 for each code."""
    log_q = -0.5 * ((codes - means).square() + math.log(2 * math.pi))
    return (log_q + math.log(2)).sum(1).mean()
