"""Adversarial losses by name, the penalties that go with them, and divergences. Logits are a discriminator's output,
(B, ...)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, relu, softplus

from genmodels.nn.distributed import mean_over_workers


@dataclass(frozen=True)
class AdversarialLoss:
    """What discriminator and generator minimise, and what the paper keeps the discriminator Lipschitz by."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # logits of real and of fake images -> scalar
    generator: Callable[..., Tensor]  # logits of fake images, and of real ones if it is relativistic -> scalar
    relativistic: bool = False
    penalises_gradients: bool = False
    allows_small_gradients: bool = False
    clips_weights: bool = False
    undecided: float | None = 0.0  # the logit of an image that is as likely real as fake; critics have none
    undecided_loss: float = 2 * math.log(2)  # the discriminator's if all images get that logit; its floor is 0


def binary_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))) with D = sigmoid(logit) (Goodfellow et al. 2014, eq. 1)."""
    return softplus(-real).mean() + softplus(fake).mean()


def minimax_generator(fake: Tensor) -> Tensor:
    """E log(1 - D(G(z))), which saturates where the discriminator is sure (Goodfellow et al. 2014, eq. 1)."""
    return -softplus(fake).mean()


def non_saturating_generator(fake: Tensor) -> Tensor:
    """-E log D(G(z)) (Goodfellow et al. 2014, section 3)."""
    return softplus(-fake).mean()


def lsgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 E (D(x) - 1)^2 + 1/2 E D(G(z))^2 (Mao et al. 2017, eq. 9)."""
    return 0.5 * (mse_loss(real, torch.ones_like(real)) + fake.square().mean())


def lsgan_generator(fake: Tensor) -> Tensor:
    """E (D(G(z)) - 1)^2: twice Mao et al. 2017, eq. 9, as CycleGAN weighs it against its other terms."""
    return mse_loss(fake, torch.ones_like(fake))


def wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """E D(G(z)) - E D(x) (Arjovsky et al. 2017, eq. 2, negated)."""
    return fake.mean() - real.mean()


def critic_generator(fake: Tensor) -> Tensor:
    """-E D(G(z)), the generator's side of the Wasserstein and the hinge loss."""
    return -fake.mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))) (Lim & Ye 2017; Miyato et al. 2018, eq. 16)."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def relative(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """How much more real each image seems than the average image of the other kind, over the batches of all workers
    (Jolicoeur-Martineau 2019)."""
    return real - mean_over_workers(fake.mean()), fake - mean_over_workers(real.mean())


def relativistic_average_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))) with D = sigmoid(relative logit): RaSGAN (Jolicoeur-Martineau 2019)."""
    return binary_discriminator(*relative(real, fake))


def relativistic_average_generator(fake: Tensor, real: Tensor) -> Tensor:
    """The discriminator's loss with real and fake exchanged (Jolicoeur-Martineau 2019)."""
    return binary_discriminator(*relative(fake, real))


AdversarialName = Literal[
    "minimax", "non_saturating", "lsgan", "wgan", "wgan_gp", "wgan_lp", "hinge", "relativistic_average"
]
ADVERSARIAL: dict[AdversarialName, AdversarialLoss] = {
    "minimax": AdversarialLoss(binary_discriminator, minimax_generator),
    "non_saturating": AdversarialLoss(binary_discriminator, non_saturating_generator),
    "lsgan": AdversarialLoss(lsgan_discriminator, lsgan_generator, undecided=0.5, undecided_loss=0.25),
    "wgan": AdversarialLoss(wasserstein_critic, critic_generator, clips_weights=True, undecided=None),
    "wgan_gp": AdversarialLoss(wasserstein_critic, critic_generator, penalises_gradients=True, undecided=None),
    "wgan_lp": AdversarialLoss(
        wasserstein_critic, critic_generator, penalises_gradients=True, allows_small_gradients=True, undecided=None
    ),
    "hinge": AdversarialLoss(hinge_discriminator, critic_generator, undecided_loss=2.0),
    "relativistic_average": AdversarialLoss(
        relativistic_average_discriminator, relativistic_average_generator, relativistic=True
    ),
}


def input_gradient(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Gradient of each sample's logit (its mean, for a map of logits) towards the sample, flat, (B, C*H*W), in fp32
    outside autocast and differentiable once more."""
    images = images.detach().requires_grad_().view_as(images)  # torch's FLOP counter cannot follow a leaf here
    with torch.autocast(images.device.type, enabled=False):
        logits = critic(images)
        (gradient,) = torch.autograd.grad(logits.reshape(len(images), -1).mean(1).sum(), images, create_graph=True)
    return gradient.flatten(1)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    mix: Tensor,
    *,
    target: float = 1.0,
    allow_small: bool = False,
) -> Tensor:
    """E (|grad D(x)| - target)^2 / target^2 at x = real + mix (fake - real), one `mix` in [0, 1] for each sample,
    (B, 1, 1, 1) (Gulrajani et al. 2017, eq. 3; the target: Karras et al. 2018, appendix A.1). With `allow_small` only
    gradients above the target count (WGAN-LP: Petzka et al. 2018)."""
    gradient = input_gradient(critic, torch.lerp(real.detach(), fake.detach(), mix))
    norm = (gradient.square().sum(1) + 1e-12).sqrt()  # the root has no derivative at zero
    excess = norm / target - 1
    return (relu(excess) if allow_small else excess).square().mean()


def zero_centred_gradient_penalty(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """1/2 E |grad D(x)|^2, to be weighted by gamma: R1 on real images, R2 on fakes (Mescheder et al. 2018, eq. 9 and
    10)."""
    return 0.5 * input_gradient(critic, images).square().sum(1).mean()


def drift(real: Tensor) -> Tensor:
    """E D(x)^2, which keeps a critic's output near zero (Karras et al. 2018, appendix A.1)."""
    return real.square().mean()


def consistency(logits: Tensor, logits_augmented: Tensor) -> Tensor:
    """E (D(x) - D(T(x)))^2 for an augmentation T (CR-GAN: Zhang et al. 2020); of the mean logit, for maps of them."""
    return (logits - logits_augmented).reshape(len(logits), -1).mean(1).square().mean()


@torch.no_grad()
def separation(real: Tensor, fake: Tensor) -> Tensor:
    """Share of the pairs, one real and one fake image, of which the real one has the larger logit (the larger mean, of
    maps of them): 1/2 for who guesses, 1 for who never errs. Not a loss."""
    judged = (logits.reshape(len(logits), -1).mean(1) for logits in (real, fake))
    return torch.gt(*judged).float().mean()


@torch.no_grad()
def clip_weights(parameters: Iterable[nn.Parameter], bound: float) -> None:
    """Clamps every weight to [-bound, bound], WGAN's way to a Lipschitz critic (Arjovsky et al. 2017, algorithm 1)."""
    for parameter in parameters:
        parameter.clamp_(-bound, bound)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats, summed over the dimensions, (B, D) -> (B,) (Kingma & Welling
    2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
