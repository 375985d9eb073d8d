"""What all adversarial models share: the settings of their loss, and the terms that these make of logits."""

from collections.abc import Callable, Iterable

import torch
from pydantic import Field
from torch import Tensor, nn

from genmodels.losses import (
    ADVERSARIAL,
    AdversarialName,
    clip_weights,
    consistency,
    drift,
    gradient_penalty,
    zero_centred_gradient_penalty,
)
from genmodels.models.base import Context, ModelConfig

Critic = Callable[[Tensor], Tensor]  # images -> logits; of the images' own labels, if it is conditional
WeightedTerms = dict[str, tuple[float, Tensor]]


class AdversarialConfig(ModelConfig):
    """The settings of an adversarial loss. A model's own config replaces the defaults by its paper's."""

    adversarial_loss: AdversarialName = "non_saturating"
    gradient_penalty_weight: float = Field(10.0, ge=0, description="of wgan_gp and wgan_lp")
    gradient_penalty_target: float = Field(1.0, gt=0, description="gradient norm that they ask for")
    weight_clip: float = Field(0.01, gt=0, description="bound of wgan's weights")
    drift_weight: float = Field(0.0, ge=0, description="of the mean square of the logits of real images")
    r1_gamma: float = Field(0.0, ge=0, description="weight of the R1 penalty, on real images; 0 turns it off")
    r2_gamma: float = Field(0.0, ge=0, description="weight of the R2 penalty, on fakes; 0 turns it off")
    r1_interval_steps: int = Field(16, ge=1, description="lazy R1 and R2: every so many steps, times as many")
    consistency_weight: float = Field(0.0, ge=0, description="of the logits' change when real images are shifted")


class Adversarial:
    """The two sides of the game that a config describes. A model gets any loss by these lines:

        terms = self.adversarial.discriminator_terms(self.discriminator, real, fake, logits_real, logits_fake, context)
        terms = {"adversarial": (1.0, self.adversarial.generator_loss(self.discriminator, real, logits_fake))}

    and, in `at`, `self.adversarial.constrain(self.discriminator.parameters())`.
    """

    def __init__(self, config: AdversarialConfig):
        self.config = config
        self.loss = ADVERSARIAL[config.adversarial_loss]

    def discriminator_terms(
        self, critic: Critic, real: Tensor, fake: Tensor, logits_real: Tensor, logits_fake: Tensor, context: Context
    ) -> WeightedTerms:
        """The discriminator's loss with the penalties that are due in this step; `critic` judges once more for them."""
        config, terms = self.config, {"adversarial": (1.0, self.loss.discriminator(logits_real, logits_fake))}
        if self.loss.penalises_gradients:
            penalty = gradient_penalty(
                critic,
                real,
                fake,
                mix=context.rand(len(real), *[1] * (real.dim() - 1)),
                target=config.gradient_penalty_target,
                allow_small=self.loss.allows_small_gradients,
            )
            terms["gradient_penalty"] = (config.gradient_penalty_weight, penalty)
        if config.drift_weight:
            terms["drift"] = (config.drift_weight, drift(logits_real))
        if context.step % config.r1_interval_steps == 0:
            for name, gamma, images in (("r1", config.r1_gamma, real), ("r2", config.r2_gamma, fake)):
                if gamma:
                    penalty = zero_centred_gradient_penalty(critic, images)
                    terms[name] = (gamma * config.r1_interval_steps, penalty)
        if config.consistency_weight:
            terms["consistency"] = (config.consistency_weight, consistency(logits_real, critic(shifted(real, context))))
        return terms

    def generator_loss(self, critic: Critic, real: Tensor, logits_fake: Tensor) -> Tensor:
        """The generator's loss; a relativistic one has `critic` judge the real images anew."""
        if not self.loss.relativistic:
            return self.loss.generator(logits_fake)
        with torch.no_grad():
            logits_real = critic(real)
        return self.loss.generator(logits_fake, logits_real)

    def constrain(self, parameters: Iterable[nn.Parameter]) -> None:
        """Clips the discriminator's weights if the loss asks for it."""
        if self.loss.clips_weights:
            clip_weights(parameters, self.config.weight_clip)

    def least_judging(self, steps: int = 1) -> float:
        """Work of the discriminator per image if the generator is updated every so many steps, in units of one forward.

        Forward costs 1, backward 2, or 1 towards the input alone. A penalty costs 6: forward, gradient, and the
        backward pass of both.
        """
        config = self.config
        lazy = (bool(config.r1_gamma) + bool(config.r2_gamma)) / config.r1_interval_steps
        judging_real_and_fake, judging_for_the_generator = 2 * 3, (2 + self.loss.relativistic) / steps
        penalties = 6 * (self.loss.penalises_gradients + lazy) + 3 * bool(config.consistency_weight)
        return judging_real_and_fake + penalties + judging_for_the_generator


def shifted(images: Tensor, context: Context) -> Tensor:
    """Each image, (C, H, W), moved by up to an eighth of its side either way; the border is repeated."""
    batch, _, height, width = images.shape
    reach = max(1, height // 8)
    down, right = context.randint(2 * reach + 1, batch, 2).sub(reach).unbind(1)
    rows = (torch.arange(height, device=images.device) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right[:, None]).clamp(0, width - 1)
    return images[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
