"""The terms that a config's adversarial settings make, their order, their weights, and when they are due."""

import math

import pytest
import torch
from drawing import draws
from replicas import replica
from torch import Tensor, nn

from genmodels.data.loader import Loader
from genmodels.models import build
from genmodels.models.adversarial import Adversarial, AdversarialConfig, shifted
from genmodels.models.base import DataInfo, Input
from genmodels.nn.augmentation import Augmentation
from genmodels.spec import TrainingSpec
from genmodels.training.bench import random_data
from genmodels.training.engine import Engine

WEIGHT = torch.tensor([3.0, 4.0]).view(2, 1, 1)
REAL = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0))
FAKE = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(1))


def linear(images: Tensor) -> Tensor:
    """A critic whose gradient is (3, 4) everywhere."""
    return (images * WEIGHT).sum((1, 2, 3))


def terms(step: int = 0, **settings) -> dict[str, tuple[float, float]]:
    game = Adversarial(AdversarialConfig(resolution=1, **settings))
    made = game.discriminator_terms(linear, REAL, FAKE, linear(REAL), linear(FAKE), draws(step))
    return {name: (weight, term.item()) for name, (weight, term) in made.items()}


@pytest.mark.parametrize(("loss", "target", "penalty"), [("wgan_gp", 10, 0.25), ("wgan_lp", 10, 0), ("wgan_lp", 1, 16)])
def test_the_gradient_penalties_of_a_linear_critic(loss, target, penalty):
    """|gradient| is 5: (5 / target - 1)^2, of WGAN-LP only if it is above the target."""
    made = terms(adversarial_loss=loss, gradient_penalty_weight=7.0, gradient_penalty_target=target)
    assert list(made) == ["adversarial", "gradient_penalty"], "a critic has no decision to be judged by"
    assert made["gradient_penalty"] == (7.0, pytest.approx(penalty, abs=1e-5))


def test_lazy_penalties_are_due_every_so_many_steps_with_as_much_weight():
    """R1 and R2 of a linear critic are |w|^2 / 2 = 12.5."""
    settings = {"r1_gamma": 2.0, "r2_gamma": 3.0, "r1_interval_steps": 4}
    assert terms(step=8, **settings)["r1"] == (8.0, pytest.approx(12.5))
    assert terms(step=8, **settings)["r2"] == (12.0, pytest.approx(12.5))
    assert list(terms(step=9, **settings)) == ["adversarial", "separation", "certainty"]


def test_a_lazy_gradient_penalty_is_due_every_so_many_steps_with_as_much_weight():
    """(5 / 10 - 1)^2 with weight 7 x 3 in every third step."""
    settings = {"adversarial_loss": "wgan_gp", "gradient_penalty_weight": 7.0, "gradient_penalty_target": 10.0}
    lazy = {"gradient_penalty_interval_steps": 3}
    assert terms(step=6, **settings, **lazy)["gradient_penalty"] == (21.0, pytest.approx(0.25, abs=1e-5))
    assert list(terms(step=7, **settings, **lazy)) == ["adversarial"]


@pytest.mark.parametrize(("name", "share"), [("hinge", 2 / 3), ("lsgan", 2 / 3), ("relativistic_average", 2 / 3)])
def test_separation_is_the_share_of_pairs_that_are_told_apart(name, share):
    """Of logits 3, 1, 2 for real images and 0, 2, 1 for fakes, beside each other; the second pair is wrong."""
    game = Adversarial(AdversarialConfig(resolution=1, adversarial_loss=name))
    logits = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 2.0, 1.0])
    weight, term = game.discriminator_terms(linear, REAL, FAKE, *logits, draws())["separation"]
    assert (weight, term.item()) == (0.0, pytest.approx(share))


@pytest.mark.parametrize(
    ("name", "real", "fake", "certainty"),
    [
        ("hinge", 0.0, 0.0, 0.0),
        ("hinge", 1.0, -3.0, 1.0),
        ("hinge", 0.5, -0.5, 0.5),
        ("hinge", -1.0, 1.0, -1.0),
        ("lsgan", 0.75, 0.25, 0.75),
        ("non_saturating", math.log(3), -math.log(3), 1 - math.log(4 / 3) / math.log(2)),
        ("relativistic_average", 7 + math.log(3), 7.0, 1 - math.log(4 / 3) / math.log(2)),
    ],
)
def test_certainty_is_the_way_to_the_floor_that_the_loss_has_gone(name, real, fake, certainty):
    """One that is right with probability 3/4 has a loss of -2 ln 3/4 left of 2 ln 2."""
    game = Adversarial(AdversarialConfig(resolution=1, adversarial_loss=name))
    logits = torch.full((4,), real), torch.full((4,), fake)
    weight, term = game.discriminator_terms(linear, REAL, FAKE, *logits, draws())["certainty"]
    assert (weight, term.item()) == (0.0, pytest.approx(certainty, abs=1e-6))


@pytest.mark.parametrize(
    ("name", "right", "wrong"), [("hinge", 0.1, -0.1), ("lsgan", 0.6, 0.4), ("relativistic_average", 5.1, 4.9)]
)
def test_the_context_is_told_which_real_images_are_taken_to_be_real(name, right, wrong):
    """Fakes are judged 5, which matters to a relativistic discriminator alone."""
    game = Adversarial(AdversarialConfig(resolution=1, adversarial_loss=name))
    context = draws(augmentation=Augmentation(("color",), target=0.6, ramp_images=1))
    for logits in ([right, right, right, wrong], [wrong] * 4):
        game.discriminator_terms(linear, REAL, FAKE, torch.tensor(logits), torch.full((4,), 5.0), context)
    assert [sign.item() for sign in context.signs] == [0.5, -1.0]


def test_a_critic_decides_nothing():
    context = draws(augmentation=Augmentation(("color",), target=0.6, ramp_images=1))
    game = Adversarial(AdversarialConfig(resolution=1, adversarial_loss="wgan"))
    game.discriminator_terms(linear, REAL, FAKE, linear(REAL), linear(FAKE), context)
    assert not context.signs


@pytest.mark.parametrize("name", ["gan", "dcgan", "infogan"])
def test_bf16_autocast_keeps_weights_in_fp32_and_losses_close(name):
    losses = []
    for precision in ("fp32", "bf16"):
        data = random_data({"image": Input(resolution=8)}, channels=1, classes=0)
        model = build(name, {"resolution": 8, "batch_images": 16}, DataInfo(channels=1), seed=0)
        engine = Engine(
            model,
            lambda stage, data=data: Loader(data, stage.inputs, stage.batch_images, seed=0),
            training=TrainingSpec(precision=precision),
        )
        engine.step()
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        losses.append(engine.losses())
    fp32, bf16 = losses
    for term in ("discriminator/loss", "generator/loss"):
        assert bf16[term] == pytest.approx(fp32[term], rel=0.05)


@pytest.mark.parametrize("name", ["biggan", "dcgan", "progressive_gan", "sagan", "sngan"])
def test_bf16_trains_with_consistency_and_penalties(name):
    config = {"resolution": 8, "batch_images": 4, "latent": 8, "consistency_weight": 1.0, "r1_gamma": 1.0}
    (gradients,) = replica(name, config, steps=1, precision="bf16")["gradients"]
    assert all(gradient.isfinite().all() for update in gradients.values() for gradient in update)
    assert all(any(gradient.any() for gradient in update) for update in gradients.values())


def test_r1_looks_at_real_images_and_r2_at_fakes():
    """The critic |x|^2 / 2 has gradient x, so the penalties show where they were taken."""
    game = Adversarial(AdversarialConfig(resolution=1, r1_gamma=1.0, r2_gamma=1.0))

    def critic(x: Tensor) -> Tensor:
        return x.square().sum((1, 2, 3)) / 2

    made = game.discriminator_terms(critic, REAL, FAKE, critic(REAL), critic(FAKE), draws())
    for name, images in (("r1", REAL), ("r2", FAKE)):
        torch.testing.assert_close(made[name][1], images.square().sum((1, 2, 3)).mean() / 2)


def test_drift_and_consistency():
    """One pixel cannot be shifted anywhere else, so the critic's answer stays."""
    made = terms(drift_weight=0.5, consistency_weight=2.0)
    assert made["drift"] == (0.5, pytest.approx(linear(REAL).square().mean().item()))
    assert made["consistency"] == (2.0, 0.0)


def test_a_relativistic_generator_compares_with_the_real_images_of_its_step():
    game = Adversarial(AdversarialConfig(resolution=1, adversarial_loss="relativistic_average"))
    fake = FAKE.clone().requires_grad_()
    loss = game.generator_loss(linear, REAL, linear(fake), draws())
    torch.testing.assert_close(loss, game.loss.discriminator(linear(FAKE), linear(REAL)))
    (slope,) = torch.autograd.grad(loss, fake)
    assert (slope.flatten(1) @ WEIGHT.flatten() < 0).all()


def test_only_wgan_clips():
    for name, bound in (("wgan", 0.5), ("wgan_gp", 3.0)):
        weights = nn.Parameter(torch.tensor([-3.0, 0.1]))
        Adversarial(AdversarialConfig(resolution=1, adversarial_loss=name, weight_clip=0.5)).constrain([weights])
        assert weights.abs().max().item() == bound


def test_shifted_images_are_crops_with_a_repeated_border():
    """Every result is one of the 3 x 3 crops of the padded image, and all of them occur."""
    image = torch.arange(128.0).view(1, 2, 8, 8)
    padded = nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
    crops = [padded[0, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    moved = shifted(image.expand(200, -1, -1, -1), draws())
    found = {next(i for i, crop in enumerate(crops) if torch.equal(crop, one)) for one in moved}
    assert found == set(range(9))
