"""GAN: what the theory says of the best discriminator, the authors' layers, and what the losses are made of."""

import json
import math

import pytest
import torch
from drawing import draws
from replicas import gradients
from torch import Tensor

from genmodels.losses import ADVERSARIAL
from genmodels.models import build
from genmodels.models.base import DataInfo, Samples
from genmodels.models.gan import GAN, Config, dropout, jensen_shannon

TINY = {"resolution": 4, "latent": 8, "generator_units": 16, "discriminator_units": 8}
ONE_PIXEL = {
    "resolution": 1,
    "latent": 1,
    "discriminator_units": 16,
    "input_dropout": 0.0,
    "hidden_dropout": 0.0,
    "discriminator_learning_rate": 0.01,
}
QUANTILES = (torch.arange(400) + 0.5) / 400


def tiny(**config) -> GAN:
    model = build("gan", TINY | config, DataInfo(channels=3), seed=0)
    assert isinstance(model, GAN)
    return model


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1


def normal(mean: float) -> Tensor:
    """The quantiles of N(mean, 1), as images of one pixel: a sample without its noise."""
    return (mean + math.sqrt(2) * torch.erfinv(2 * QUANTILES - 1)).view(-1, 1, 1, 1)


def trained_discriminator(real: Tensor, fake: Tensor) -> tuple[GAN, dict[str, float]]:
    """A model whose discriminator was trained to convergence with the fakes held fixed; and its last terms."""
    model = build("gan", ONE_PIXEL, DataInfo(channels=1), seed=0)
    assert isinstance(model, GAN)
    update = model.updates(model.stages[0])[0]
    optimizer = torch.optim.Adam(update.parameters, lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    context, terms = draws(), {}
    context.shared["fakes"] = fake
    for _ in range(600):
        optimizer.zero_grad()
        loss = update.loss({"image": real}, context)
        loss.total.backward()
        optimizer.step()
        schedule.step()
        terms = {name: term.item() for name, term in loss.terms.items()}
    return model, terms


def test_the_best_discriminator_is_p_over_p_plus_q():
    """Proposition 1 with p = N(0, 1) and q = N(1, 1): p / (p + q) = sigmoid(1/2 - x), and at the optimum the value is
    2 JSD(p, q) - log 4 (theorem 1); here within 0.02 over all x where p + q is more than a tenth of its largest."""
    model, terms = trained_discriminator(normal(0.0), normal(1.0))
    x = torch.linspace(-1.7, 2.7, 89)
    with torch.no_grad():
        judged = torch.sigmoid(model.discriminator(x.view(-1, 1, 1, 1)))
    torch.testing.assert_close(judged, torch.sigmoid(0.5 - x), atol=0.02, rtol=0)
    grid = torch.linspace(-12, 13, 25_001, dtype=torch.float64)
    p, q = (torch.exp(-0.5 * (grid - mean) ** 2) / math.sqrt(2 * math.pi) for mean in (0, 1))
    entropy = [torch.special.xlogy(density, density / ((p + q) / 2)).sum().item() * 1e-3 for density in (p, q)]
    assert terms["jensen_shannon"] == pytest.approx(sum(entropy) / 2, abs=1e-3)


def test_the_value_is_minus_log_4_where_the_generator_is_the_data():
    model, terms = trained_discriminator(normal(0.0), normal(0.0))
    assert terms["value"] == pytest.approx(-math.log(4), abs=1e-6)
    assert terms["jensen_shannon"] == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(torch.sigmoid(model.discriminator(normal(0.0))), torch.full((400,), 0.5))


def test_the_divergence_of_disjoint_supports_is_log_2():
    _, terms = trained_discriminator(normal(-20.0), normal(20.0))
    assert terms["jensen_shannon"] == pytest.approx(math.log(2), abs=1e-3)
    assert jensen_shannon(torch.tensor(0.0)).item() == pytest.approx(math.log(2))


def test_parameter_counts_are_those_of_the_authors_mnist_networks():
    """100-1200-1200-784; 784-240-240-1, where a hidden unit is the largest of 5 linear maps."""
    networks = GAN(Config.preset("paper"), DataInfo(channels=1)).networks()
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    generator = 101 * 1200 + 1201 * 1200 + 1201 * 784
    discriminator = 785 * 240 * 5 + 241 * 240 * 5 + 241
    assert counts == {"generator": generator, "discriminator": discriminator}


def test_the_discriminator_against_the_formula():
    discriminator = tiny().discriminator
    x = images().flatten(1)
    for layer in (discriminator.first.linear, discriminator.second.linear):
        maps = (x @ layer.weight.T + layer.bias).view(4, 8, 5)
        x = maps.max(dim=2).values
    expected = x @ discriminator.logit.weight[0] + discriminator.logit.bias
    torch.testing.assert_close(discriminator(images()), expected)


def test_dropout_keeps_the_mean_and_needs_a_context():
    x = torch.ones(1000, 50)
    dropped = dropout(x, 0.2, draws())
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
    assert dropout(x, 0.2, None) is x
    assert not torch.equal(*(dropout(x, 0.2, context) for context in (draws(0), draws(1))))


def test_the_losses_are_the_papers():
    model = tiny(input_dropout=0.0, hidden_dropout=0.0, adversarial_loss="minimax")
    context = draws().begin(0)
    loss = model.discriminator_loss({"image": images()}, context)
    fake = model.generator(draws().begin(0).randn(4, 8))
    d_real, d_fake = (torch.sigmoid(model.discriminator(x).double()) for x in (images(), fake))
    value = d_real.log().mean() + (1 - d_fake).log().mean()
    torch.testing.assert_close(loss.total.double(), -value)
    torch.testing.assert_close(loss.terms["value"].double(), value)
    generator_loss = model.generator_loss({"image": images()}, context.begin(1))
    torch.testing.assert_close(generator_loss.total.double(), (1 - d_fake).log().mean())


def test_real_images_and_fakes_are_judged_in_one_pass():
    """Without dropout the loss is that of two passes."""
    model, passes = tiny(input_dropout=0.0, hidden_dropout=0.0), list[int]()
    model.discriminator.register_forward_pre_hook(lambda network, given: passes.append(len(given[0])))
    context = draws()
    loss = model.discriminator_loss({"image": images()}, context)
    assert passes == [8]
    logits = [model.discriminator(x) for x in (images(), context.shared["fakes"].detach())]
    torch.testing.assert_close(loss.total, ADVERSARIAL["non_saturating"].discriminator(*logits))


def test_micro_batches_with_dropout_make_the_gradient_of_the_whole_batch():
    config = TINY | {"batch_images": 8}
    whole, parts = (gradients("gan", config, steps=1, accumulation=micros)[0] for micros in (1, 4))
    for update, expected in whole.items():
        torch.testing.assert_close(parts[update], expected)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_every_adversarial_loss_trains_both_players(name):
    model = tiny(adversarial_loss=name, r1_gamma=1.0, r2_gamma=1.0, consistency_weight=1.0)
    context = draws()
    for index, update in enumerate(model.updates(model.stages[0])):
        loss = update.loss({"image": images()}, context.begin(index))
        gradients = torch.autograd.grad(loss.total, update.parameters, retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.abs().sum() > 0 for gradient in gradients)
        assert ("value" in loss.terms) == (update.name == "discriminator" and name in {"minimax", "non_saturating"})


def test_the_discriminator_may_take_several_steps():
    """In between, fakes carry no graph; their latents are new in every step."""
    model = tiny(discriminator_steps=3)
    discriminator, generator = model.updates(model.stages[0])
    assert (discriminator.interval_steps, generator.interval_steps) == (1, 3)
    fakes = [model.fakes({"image": images()}, draws(step), to_learn=False) for step in range(4)]
    assert [each.requires_grad for each in fakes] == [True, False, False, True]
    assert not torch.equal(fakes[1], fakes[2])


def test_samples_are_images_and_depend_on_the_generator_alone():
    model = tiny()
    assert isinstance(model, Samples)
    first = model.sample(5, generator=torch.Generator().manual_seed(3))
    assert first.shape == (5, 3, 4, 4)
    assert first.abs().max() <= 1
    assert torch.equal(first, model.sample(5, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(first, model.sample(5, generator=torch.Generator().manual_seed(4)))


def test_an_average_is_kept_if_asked_for():
    assert tiny().ema is None
    average = tiny(ema_half_life_images=100.0).ema
    assert average
    assert average.modules == ("generator",)


@pytest.mark.parametrize("preset", Config.presets)
def test_presets_survive_json(preset):
    config = Config.preset(preset)
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
