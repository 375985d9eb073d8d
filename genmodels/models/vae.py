"""Variational autoencoder (Kingma & Welling, ICLR 2014), and its importance-weighted bound (Burda et al., ICLR 2016).

A latent z ~ N(0, 1) is decoded to a distribution p(x|z) of images; the encoder gives a Gaussian q(z|x) for each.
Pixels are rounded to the likelihood's levels, so that p(x|z) is a probability and not a density without a unit.
B batch, C channels, H height, W width, Z latent, K samples of an image's latent.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genmodels.losses import gaussian_kl
from genmodels.models.autoencoding import AutoencodingConfig, AutoencodingModel
from genmodels.models.base import Adam, Batch, Context, DataInfo, Density, LossTerms, Stage, Update
from genmodels.nn.levels import from_levels, to_levels
from genmodels.nn.likelihoods import bernoulli, discretised

DECODED_PIXELS = 2**21  # decoded at a time for the bound


class Config(AutoencodingConfig):
    """The defaults are the textbook's 784-400-20-400-784 for binary MNIST, 100 epochs of 60,000 images."""

    stage = "elbo"

    hidden: tuple[int, ...] = Field((400,), description="sizes of dense layers")
    latent: int = Field(20, ge=1)
    likelihood: Literal["bernoulli", "gaussian", "discretised_logistic"] = Field(
        "bernoulli", description="of a pixel: bernoulli takes it for black or white, the others have one learnt scale"
    )
    levels: int = Field(256, ge=2, le=256, description="values of a pixel that is not black or white")
    beta: float = Field(1.0, ge=0, description="weight of the KL divergence (Higgins et al. 2017); 1 is the ELBO")
    images: int = Field(6_000_000, ge=1, description="images shown in all")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "convolutional": {"architecture": "convolutional"},
        "cpu": {"images": 1_000_000},  # binarised 32x32
        "cpu_convolutional": {"architecture": "convolutional", "width": 16, "images": 400_000},
        "demo": {
            "architecture": "convolutional",
            "width": 16,
            "latent": 10,
            "likelihood": "discretised_logistic",
            "levels": 17,
            "batch_images": 64,
            "images": 300_000,
        },
    }


class VAE(AutoencodingModel):
    """One stage and one update: encoder and decoder together, by the evidence lower bound."""

    Config = Config
    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]
    density = Density.APPROXIMATE
    title = "Variational autoencoder"
    likelihood = "lower bound, the ELBO"

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data, code=config.latent, encoded=2 * config.latent)
        self.binary = config.likelihood == "bernoulli"
        self.log_scale = None if self.binary else nn.Parameter(torch.full((data.channels, 1, 1), -1.0))
        self.levels = 2 if self.binary else config.levels

    def updates(self, stage: Stage) -> list[Update]:
        return [Update("elbo", list(self.parameters()), self.loss, Adam(self.config.learning_rate))]

    def loss(self, batch: Batch, context: Context) -> LossTerms:
        """The negative ELBO in nats an image, with beta 1 (Kingma & Welling 2014, eq. 10)."""
        pixels = to_levels(batch["image"], self.levels)
        mean, log_variance = self._posterior(pixels)
        latent = mean + (0.5 * log_variance).exp() * context.randn(*mean.shape)
        reconstruction = -self._log_likelihood_given(latent, pixels).mean()
        kl = gaussian_kl(mean, log_variance).mean()
        return LossTerms.weighted({"reconstruction": (1.0, reconstruction), "kl": (self.config.beta, kl)})

    def _posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Levels (B, C, H, W) -> mean and logarithm of the variance of q(z|x), (B, Z) each, in fp32: exp overflows."""
        mean, log_variance = self.encoder(from_levels(pixels, self.levels)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 20)

    def _log_likelihood_given(self, latent: Tensor, pixels: Tensor) -> Tensor:
        """ln p(x|z) of latents (B, Z) and levels (B, C, H, W): (B,)."""
        decoded = self.decoder(latent).float()
        if self.log_scale is None:
            log_p = bernoulli(pixels, decoded)
        else:
            distribution = "gaussian" if self.config.likelihood == "gaussian" else "logistic"
            log_p = discretised(distribution, pixels, decoded, self.log_scale, self.levels)
        return log_p.sum(dim=(1, 2, 3))

    def log_likelihood(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """The bound by one sample, which is the ELBO in the mean, whatever beta is, in nats: (B, C, H, W) -> (B,)."""
        return self.importance_bound(images, 1, generator=generator)

    @torch.no_grad()
    def importance_bound(self, images: Tensor, samples: int, *, generator: torch.Generator) -> Tensor:
        """The importance-weighted bound of ln p(x), in nats: (B, C, H, W) -> (B,) (Burda et al. 2016, eq. 8)."""
        pixels = to_levels(images, self.levels)
        mean, log_variance = self._posterior(pixels)

        def log_joint(latent_KBZ: Tensor) -> Tensor:
            repeated = pixels.repeat(len(latent_KBZ), 1, 1, 1)
            given = self._log_likelihood_given(latent_KBZ.flatten(0, 1), repeated).view(latent_KBZ.shape[:2])
            return given + log_normal(latent_KBZ)

        at_a_time = max(1, DECODED_PIXELS // pixels.numel())
        log_weights = []
        for start in range(0, samples, at_a_time):
            shape = min(at_a_time, samples - start), *mean.shape
            noise = torch.randn(shape, generator=generator, device=generator.device).to(mean.device)
            log_weights.append(importance_log_weights(log_joint, mean, log_variance, noise))
        return torch.cat(log_weights).logsumexp(dim=0) - math.log(samples)

    @property
    def prior_in_pairs(self) -> bool:
        """All dimensions of a standard normal are alike."""
        return False

    def prior(self, n: int, *, generator: torch.Generator) -> Tensor:
        """n latents, (n, Z)."""
        device = next(self.parameters()).device
        return torch.randn(n, self.config.latent, generator=generator, device=generator.device).to(device)

    @torch.no_grad()
    def posterior(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """A latent of q(z|x) for each image, (B, Z)."""
        mean, log_variance = self._posterior(to_levels(images, self.levels))
        noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean.device)
        return mean + (0.5 * log_variance).exp() * noise

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """n images, (n, C, H, W) in [-1, 1], decoded from the prior: the means of p(x|z), without its noise."""
        return self.decode(self.prior(n, generator=generator))

    def encode(self, images: Tensor) -> Tensor:
        """The means of q(z|x): (B, C, H, W) in [-1, 1] -> (B, Z)."""
        return self._posterior(to_levels(images, self.levels))[0]

    def decode(self, codes: Tensor) -> Tensor:
        """The means of p(x|z): (B, Z) -> (B, C, H, W), about in [-1, 1]."""
        decoded = self.decoder(codes).float()
        return 2 * torch.sigmoid(decoded) - 1 if self.binary else decoded


def log_normal(latent: Tensor) -> Tensor:
    """ln N(z; 0, 1), summed over the last dimension."""
    return -0.5 * (latent.square() + math.log(2 * math.pi)).sum(dim=-1)


def importance_log_weights(
    log_joint: Callable[[Tensor], Tensor], mean: Tensor, log_variance: Tensor, noise: Tensor
) -> Tensor:
    """ln p(x, z) - ln q(z|x), (K, B), at z = mean + exp(log_variance / 2) noise (K, B, Z); `log_joint` gives the first.
    The logarithm of the mean weight bounds ln p(x) from below, in expectation; from one sample alone it is the ELBO."""
    latent = mean + (0.5 * log_variance).exp() * noise
    log_posterior = log_normal(noise) - 0.5 * log_variance.sum(dim=-1)
    return log_joint(latent) - log_posterior
