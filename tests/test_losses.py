"""Adversarial losses and penalties against their closed forms and numerical gradients."""

import math
from typing import get_args

import pytest
import torch
from torch import nn

from genmodels.losses import (
    ADVERSARIAL,
    AdversarialName,
    clip_weights,
    consistency,
    drift,
    gradient_penalty,
    input_gradient,
    zero_centred_gradient_penalty,
)

ZEROS = torch.zeros(4)
REAL, FAKE = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
LOG_2 = math.log(2)


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("minimax", 2 * LOG_2, -LOG_2),
        ("non_saturating", 2 * LOG_2, LOG_2),
        ("lsgan", 0.5, 1.0),
        ("wgan", 0.0, 0.0),
        ("wgan_gp", 0.0, 0.0),
        ("hinge", 2.0, 0.0),
    ],
)
def test_values_where_the_discriminator_is_undecided(name, discriminator, generator):
    """At logit 0, D = 1/2: the minimax value -loss is -ln 4, the hinge loss 2, the least squares 1/2 (1 + 0)."""
    assert ADVERSARIAL[name].discriminator(ZEROS, ZEROS).item() == pytest.approx(discriminator)
    assert ADVERSARIAL[name].generator(ZEROS).item() == pytest.approx(generator)


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("lsgan", 0.5 * ((1 + 4) / 2 + (0.25 + 9) / 2), (0.25 + 16) / 2),
        ("wgan", -1.25 - 0.5, 1.25),
        ("hinge", (0 + 2) / 2 + (1.5 + 0) / 2, 1.25),
    ],
)
def test_values_by_hand(name, discriminator, generator):
    assert ADVERSARIAL[name].discriminator(REAL, FAKE).item() == pytest.approx(discriminator)
    assert ADVERSARIAL[name].generator(FAKE).item() == pytest.approx(generator)


def test_binary_losses_are_those_of_probabilities():
    d_real, d_fake = torch.sigmoid(REAL.double()), torch.sigmoid(FAKE.double())
    expected = -(d_real.log().mean() + (1 - d_fake).log().mean())
    assert ADVERSARIAL["minimax"].discriminator(REAL, FAKE).item() == pytest.approx(expected.item())
    assert ADVERSARIAL["minimax"].generator(FAKE).item() == pytest.approx((1 - d_fake).log().mean().item())
    assert ADVERSARIAL["non_saturating"].generator(FAKE).item() == pytest.approx(-d_fake.log().mean().item())


@pytest.mark.parametrize(
    ("name", "best"), [("lsgan", 3 / 4), ("minimax", math.log(3)), ("non_saturating", math.log(3))]
)
def test_the_best_discriminator(name, best):
    """Where real images are p / q = 3 times as likely as fakes, LSGAN's best logit is p / (p + q), GAN's ln(p / q)."""
    real, fake = torch.full((2, 1), best, dtype=torch.float64, requires_grad=True).unbind()
    loss = ADVERSARIAL[name].discriminator(real, fake)
    slope_real, slope_fake = torch.autograd.grad(loss, (real, fake))
    assert (3 * slope_real + slope_fake).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_generator_and_discriminator_pull_fake_logits_apart(name):
    real, fake = torch.tensor([0.3]), torch.tensor([0.3], requires_grad=True)
    judged = (fake, real) if ADVERSARIAL[name].relativistic else (fake,)
    (up,) = torch.autograd.grad(ADVERSARIAL[name].generator(*judged), fake)
    (down,) = torch.autograd.grad(ADVERSARIAL[name].discriminator(real, fake), fake)
    assert up < 0 < down


def test_relativistic_average_against_its_formula():
    """RaSGAN: D(x) = sigmoid(C(x) - E C(fake)), D(fake) = sigmoid(C(fake) - E C(x)); the generator swaps the two."""
    d_real, d_fake = torch.sigmoid((REAL + 1.25).double()), torch.sigmoid((FAKE - 0.5).double())
    discriminator = -(d_real.log().mean() + (1 - d_fake).log().mean())
    generator = -(d_fake.log().mean() + (1 - d_real).log().mean())
    loss = ADVERSARIAL["relativistic_average"]
    assert loss.discriminator(REAL, FAKE).item() == pytest.approx(discriminator.item())
    assert loss.generator(FAKE, REAL).item() == pytest.approx(generator.item())


def test_relativistic_average_looks_at_differences_alone():
    loss = ADVERSARIAL["relativistic_average"]
    torch.testing.assert_close(loss.discriminator(REAL + 7, FAKE + 7), loss.discriminator(REAL, FAKE))
    assert loss.discriminator(ZEROS + 3, ZEROS + 3).item() == pytest.approx(2 * LOG_2)


@pytest.mark.parametrize("name", [name for name, loss in ADVERSARIAL.items() if loss.undecided is not None])
def test_the_loss_of_an_undecided_discriminator_is_known_and_the_floor_is_zero(name):
    loss = ADVERSARIAL[name]
    assert loss.undecided is not None
    undecided = torch.full((4,), loss.undecided)
    assert loss.discriminator(undecided, undecided).item() == pytest.approx(loss.undecided_loss)
    real, fake = (1.0, 0.0) if name == "lsgan" else (50.0, -50.0)
    assert loss.discriminator(torch.full((4,), real), torch.full((4,), fake)).item() == pytest.approx(0.0, abs=1e-12)


def test_configs_name_all_losses():
    assert get_args(AdversarialName) == tuple(ADVERSARIAL)


@pytest.mark.parametrize(
    ("scale", "target", "two_sided", "one_sided"),
    [(1, 1, 16.0, 16.0), (0.2, 1, 0.0, 0.0), (0.4, 1, 1.0, 1.0), (1, 10, 0.25, 0.0), (0.1, 1, 0.25, 0.0)],
)
def test_gradient_penalty_of_a_linear_critic(scale, target, two_sided, one_sided):
    """The gradient of x @ w is w everywhere, so the penalty is (|w| / target - 1)^2, of WGAN-LP max(0, |w| / target -
    1)^2; w = scale (3, 4)."""
    weight = scale * torch.tensor([3.0, 4.0])
    real, fake = torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(0))
    for allow_small, penalty in ((False, two_sided), (True, one_sided)):
        value = gradient_penalty(
            lambda x: x @ weight, real, fake, torch.rand(8, 1), target=target, allow_small=allow_small
        )
        assert value.item() == pytest.approx(penalty, abs=1e-6)


def test_gradient_penalty_is_taken_at_each_samples_own_interpolate():
    """The critic |x|^2 / 2 has gradient x, so the penalty shows where it was taken."""
    real, fake = torch.zeros(2, 1, 1, 1), torch.full((2, 1, 1, 1), 4.0)
    mix = torch.tensor([0.5, 0.75]).view(2, 1, 1, 1)
    value = gradient_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, real, fake, mix)
    assert value.item() == pytest.approx(((2 - 1) ** 2 + (3 - 1) ** 2) / 2)


def test_gradient_penalty_of_a_flat_critic_has_a_gradient():
    """At a zero gradient the norm's derivative does not exist; it must not become NaN."""
    weight = torch.zeros(2, requires_grad=True)
    gradient_penalty(lambda x: x @ weight, torch.zeros(3, 2), torch.ones(3, 2), torch.rand(3, 1)).backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("penalty", ["gradient_penalty", "zero_centred_gradient_penalty"])
def test_second_order_gradients_against_finite_differences(penalty):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 1))
    network.double()
    real, fake = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    mix = torch.rand(3, 1, 1, 1, dtype=torch.float64)

    def value(weight: torch.Tensor) -> torch.Tensor:
        def critic(x: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(network, {"0.weight": weight}, (x,))

        if penalty == "gradient_penalty":
            return gradient_penalty(critic, real, fake, mix, target=0.5)
        return zero_centred_gradient_penalty(critic, real)

    weight = network[0].weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(value, (weight,), atol=1e-7)


def test_the_zero_centred_penalty_of_a_linear_critic():
    """1/2 |w|^2 = 12.5 for w = (3, 4), whatever the images."""
    assert zero_centred_gradient_penalty(
        lambda x: x @ torch.tensor([3.0, 4.0]), torch.randn(5, 2)
    ).item() == pytest.approx(12.5)


def test_the_gradient_of_a_map_of_logits_is_that_of_its_mean():
    gradient = input_gradient(lambda x: 3 * x, torch.randn(2, 1, 2, 2))
    torch.testing.assert_close(gradient, torch.full((2, 4), 0.75))


def test_penalties_stay_in_fp32_under_autocast():
    network = nn.Linear(64, 1)
    images = torch.randn(8, 64)
    expected = zero_centred_gradient_penalty(network, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(zero_centred_gradient_penalty(network, images), expected)


def test_drift_is_the_mean_square_of_the_logits():
    assert drift(REAL).item() == pytest.approx(2.5)


def test_consistency_compares_the_answers_for_each_image():
    maps = torch.tensor([[1.0, 3.0], [0.0, 2.0]]).view(2, 1, 1, 2)
    assert consistency(REAL, FAKE).item() == pytest.approx((1.5**2 + 2**2) / 2)
    assert consistency(maps, maps.flip(3)).item() == 0
    assert consistency(maps, 2 * maps).item() == pytest.approx((2**2 + 1**2) / 2)


def test_clipped_weights_stay_within_the_bound():
    weights = [nn.Parameter(torch.tensor([-0.5, 0.005, 0.2])), nn.Parameter(torch.tensor([[3.0]]))]
    clip_weights(weights, 0.01)
    torch.testing.assert_close(weights[0].data, torch.tensor([-0.01, 0.005, 0.01]))
    assert weights[1].item() == pytest.approx(0.01)
