"""What all adversarial models share: the settings of their loss, and the terms that these make of logits."""

import math
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from genmodels.errors import SpecError
from genmodels.losses import (
    ADVERSARIAL,
    AdversarialName,
    clip_weights,
    consistency,
    drift,
    gradient_penalty,
    relative,
    separation,
    zero_centred_gradient_penalty,
)
from genmodels.models.base import (
    Context,
    ModelConfig,
    Passes,
    Samples,
)
from genmodels.nn.augmentation import moved
from genmodels.nn.batch_norm import has_batch_norms, measuring_standing_statistics
from genmodels.spec import TrainingSpec, is_points

Critic = Callable[[Tensor], Tensor]  # images -> logits; of the images' own labels, if it is conditional
WeightedTerms = dict[str, tuple[float, Tensor]]
STANDING_SAMPLES, STANDING_PIXELS = 4096, 2**18


class AdversarialConfig(ModelConfig):
    """The settings of an adversarial loss. A model's own config replaces the defaults by its paper's."""

    judged: ClassVar[Literal["images", "codes"]] = "images"

    adversarial_loss: AdversarialName = "non_saturating"
    gradient_penalty_weight: float = Field(10.0, ge=0, description="of wgan_gp and wgan_lp")
    gradient_penalty_target: float = Field(1.0, gt=0, description="gradient norm that they ask for")
    gradient_penalty_interval_steps: int = Field(1, ge=1, description="lazy: every so many steps, times as much")
    weight_clip: float = Field(0.01, gt=0, description="bound of wgan's weights")
    drift_weight: float = Field(0.0, ge=0, description="of the mean square of the logits of real images")
    r1_gamma: float = Field(0.0, ge=0, description="weight of the R1 penalty, on real images; 0 turns it off")
    r2_gamma: float = Field(0.0, ge=0, description="weight of the R2 penalty, on fakes; 0 turns it off")
    r1_interval_steps: int = Field(16, ge=1, description="lazy R1 and R2: every so many steps, times as many")
    consistency_weight: float = Field(0.0, ge=0, description="of the logits' change when real images are shifted")

    @property
    def penalty_interval_steps(self) -> int:
        """In so many steps every lazy penalty has been due as often as in any others."""
        lazy = [self.gradient_penalty_interval_steps] if ADVERSARIAL[self.adversarial_loss].penalises_gradients else []
        return math.lcm(*lazy, self.r1_interval_steps if self.r1_gamma or self.r2_gamma else 1)

    @model_validator(mode="after")
    def _shifts_images_alone(self) -> Self:
        if self.consistency_weight and self.judged != "images":
            raise ValueError(
                f"consistency_weight shifts images, and the discriminator judges {self.judged}; leave it at 0."
            )
        return self

    def check(self, training: TrainingSpec) -> None:
        if self.judged != "images" or is_points(self.resolution):
            super().check(training)
        if self.consistency_weight and is_points(self.resolution):
            raise SpecError("consistency_weight shifts images, and points have no pixels to shift; leave it at 0.")
        loss = ADVERSARIAL[self.adversarial_loss]
        if loss.relativistic and training.accumulation > 1:
            raise SpecError(
                f"adversarial_loss={self.adversarial_loss} compares with the mean over a whole batch, which "
                "training.accumulation cuts up; take another loss or set it to 1."
            )
        if training.augmentation_target is not None and loss.undecided is None:
            raise SpecError(
                f"training.augmentation_target needs a discriminator that decides, which {self.adversarial_loss} has "
                "not; take another adversarial_loss or leave it out."
            )


class Adversarial:
    """The two sides of the game that a config describes. A model gets any loss by these lines:

        terms = self.adversarial.discriminator_terms(self.discriminator, real, fake, logits_real, logits_fake, context)
        loss = self.adversarial.generator_loss(self.discriminator, real, logits_fake, context)

    with `real` and `fake` from `context.augmented(images)` wherever the discriminator judges them; and by the
    discriminator's update, `Update(..., after=partial(self.adversarial.constrain, parameters))`.
    """

    def __init__(self, config: AdversarialConfig):
        self.config = config
        self.loss = ADVERSARIAL[config.adversarial_loss]

    def discriminator_terms(
        self, critic: Critic, real: Tensor, fake: Tensor, logits_real: Tensor, logits_fake: Tensor, context: Context
    ) -> WeightedTerms:
        """The discriminator's loss with the penalties that are due in this step, for which `critic` judges once more;
        and, without a weight, how well it tells the two apart: `separation`, and `certainty`, the part of the way from
        an undecided one's loss to the floor of 0 that the loss has gone."""
        config, terms = self.config, {"adversarial": (1.0, self.loss.discriminator(logits_real, logits_fake))}
        if self.loss.penalises_gradients and context.step % config.gradient_penalty_interval_steps == 0:
            penalty = gradient_penalty(
                critic,
                real,
                fake,
                mix=context.rand(len(real), *[1] * (real.dim() - 1)),
                target=config.gradient_penalty_target,
                allow_small=self.loss.allows_small_gradients,
            )
            interval = config.gradient_penalty_interval_steps
            terms["gradient_penalty"] = (config.gradient_penalty_weight * interval, penalty)
        if config.drift_weight:
            terms["drift"] = (config.drift_weight, drift(logits_real))
        if context.step % config.r1_interval_steps == 0:
            for name, gamma, images in (("r1", config.r1_gamma, real), ("r2", config.r2_gamma, fake)):
                if gamma:
                    penalty = zero_centred_gradient_penalty(critic, images)
                    terms[name] = (gamma * config.r1_interval_steps, penalty)
        if config.consistency_weight:
            terms["consistency"] = (config.consistency_weight, consistency(logits_real, critic(shifted(real, context))))
        if self.loss.undecided is not None:
            terms["separation"] = (0.0, separation(logits_real, logits_fake))
            terms["certainty"] = (0.0, 1 - terms["adversarial"][1].detach() / self.loss.undecided_loss)
            apart = logits_real - self.loss.undecided
            context.decided(relative(logits_real, logits_fake)[0] if self.loss.relativistic else apart)
        return terms

    def generator_loss(self, critic: Critic, real: Tensor, logits_fake: Tensor, context: Context) -> Tensor:
        """The generator's loss; a relativistic one has `critic` judge the real images anew."""
        if not self.loss.relativistic:
            return self.loss.generator(logits_fake)
        with torch.no_grad():
            logits_real = critic(context.augmented(real))
        return self.loss.generator(logits_fake, logits_real)

    def constrain(self, parameters: Iterable[nn.Parameter]) -> None:
        """Clips the discriminator's weights if the loss asks for it."""
        if self.loss.clips_weights:
            clip_weights(parameters, self.config.weight_clip)

    def least_judging(self, judge: Passes, steps: int = 1) -> float:
        """FLOPs of the discriminator per image if the generator is updated every so many steps. Its own updates ask for
        no gradient towards what it judges, the generator's for none towards its weights."""
        config = self.config
        sets_judged = 2 + bool(config.consistency_weight)  # real, fake and shifted
        penalties = (bool(config.r1_gamma) + bool(config.r2_gamma)) / config.r1_interval_steps
        penalties += self.loss.penalises_gradients / config.gradient_penalty_interval_steps
        for_the_generator = (1 + self.loss.relativistic) * judge.forward + judge.to_input
        own = sets_judged * (judge.forward + judge.to_weights) + (penalties and penalties * judge.penalty)
        return own + for_the_generator / steps


def shifted(images: Tensor, context: Context) -> Tensor:
    """Each image, (C, H, W), moved by up to an eighth of its side either way; the border is repeated."""
    reach = max(1, images.shape[2] // 8)
    down, right = context.randint(2 * reach + 1, len(images), 2).sub(reach).unbind(1)
    return moved(images, down, right)


@torch.no_grad()
def shared_fakes(
    context: Context,
    latents: Callable[[], Tensor],
    generator: Callable[[Tensor], Tensor],
    *,
    to_learn: bool,
    learns: bool = True,
) -> Tensor:
    """What both updates of a step judge: made once, since the generator does not change in between. Of several
    micro-batches those for the discriminator come without a graph and the generator makes its own anew, of the same
    latents, so that one graph is kept at a time and not one for each.

    Args:
        to_learn: whether this is the generator's update.
        learns: whether the step has one.
    """
    shared = context.shared
    if "latents" not in shared:
        shared["latents"] = latents()
    graph = to_learn or (learns and context.micros == 1)
    if "fakes" not in shared or (to_learn and not shared["fakes"].requires_grad):
        with torch.set_grad_enabled(graph):
            shared["fakes"] = generator(shared["latents"])
    return shared["fakes"]


def measure_standing_statistics(model: Samples, generator: nn.Module, resolution: int) -> None:
    """Measures on samples what the batch norms of the model's generator normalise by in evaluation, if it has any."""
    if not has_batch_norms(generator):
        return
    draws = torch.Generator(next(generator.parameters()).device).manual_seed(0)
    batch = max(8, min(256, STANDING_PIXELS // resolution**2))
    with measuring_standing_statistics(generator):
        for _ in range(-(-STANDING_SAMPLES // batch)):
            model.sample(batch, generator=draws)
