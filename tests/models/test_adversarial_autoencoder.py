"""Adversarial autoencoder: losses at equilibrium, what each update trains, labels, codes that come to the prior."""

import json
import math
from typing import get_args

import numpy as np
import pytest
import torch
from drawing import draws
from torch import Tensor

from genmodels.data.dataset import Dataset
from genmodels.data.loader import Loader
from genmodels.errors import SpecError
from genmodels.evaluation.bootstrap import Estimate
from genmodels.evaluation.kernel import prior_mmd
from genmodels.losses import ADVERSARIAL
from genmodels.models import build
from genmodels.models.adversarial_autoencoder import UNKNOWN, AdversarialAutoencoder, Config, pseudorandom
from genmodels.models.base import DataInfo, Density, Encodes, HasPrior, Samples, ScoresDensity
from genmodels.training.engine import Engine

PRIOR_NAMES = get_args(Config.model_fields["prior"].annotation)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**config) -> AdversarialAutoencoder:
    settings = {"resolution": 4, "hidden": (32,), "discriminator_hidden": (32,), "latent": 2} | config
    model = build("adversarial_autoencoder", settings, DataInfo(channels=1, classes=4), seed=0)
    assert isinstance(model, AdversarialAutoencoder)
    return model


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=seeded(1)) * 2 - 1


def test_a_discriminator_that_cannot_tell_has_a_loss_of_2_ln_2():
    """Codes that follow the prior leave it nothing better: it is the minimum of -E ln D - E ln(1 - D) for equal
    distributions, and every step of the discriminator from there is uphill."""
    model = small(latent=2, discriminator_hidden=())
    torch.nn.init.zeros_(model.discriminator[-1].weight)
    torch.nn.init.zeros_(model.discriminator[-1].bias)
    context = draws().begin(1)
    context.shared["codes"] = torch.randn(20_000, 2, generator=seeded(5))
    loss = model.discriminator_loss({"image": torch.zeros(20_000, 1, 4, 4)}, context).total
    assert loss.item() == pytest.approx(2 * math.log(2))
    gradients = torch.autograd.grad(loss, list(model.discriminator.parameters()))
    assert max(gradient.abs().max().item() for gradient in gradients) < 0.02
    context.shared["codes"] = context.shared["codes"] + 1
    away = model.discriminator_loss({"image": torch.zeros(20_000, 1, 4, 4)}, context).total
    gradients = torch.autograd.grad(away, list(model.discriminator.parameters()))
    assert max(gradient.abs().max().item() for gradient in gradients) > 0.4


def test_each_update_reaches_what_it_trains():
    model = small()
    context = draws()
    owners = {"reconstruction": ("encoder", "decoder"), "discriminator": ("discriminator",), "encoder": ("encoder",)}
    for index, update in enumerate(model.updates(model.stages[0])):
        loss = update.loss({"image": images()}, context.begin(index)).total
        gradients = torch.autograd.grad(loss, update.parameters, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
        expected = {id(p) for name in owners[update.name] for p in model.get_submodule(name).parameters()}
        assert {id(p) for p in update.parameters} == expected


def test_the_encoder_wants_its_codes_to_be_taken_for_draws_of_the_prior():
    model, context = small(), draws()
    logits = model.discriminator(model.encode(images()))
    expected = torch.nn.functional.softplus(-logits).mean()
    torch.testing.assert_close(model.encoder_loss({"image": images()}, context.begin(2)).total, expected)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_every_adversarial_loss_with_its_penalties(name: str):
    """A linear discriminator has the gradient (3, 4) everywhere, so R1 and R2 are 12.5, WGAN-GP's penalty 16."""
    settings = {"r1_gamma": 2.0, "r2_gamma": 3.0, "r1_interval_steps": 4, "drift_weight": 0.5}
    model = small(adversarial_loss=name, discriminator_hidden=(), **settings)
    torch.nn.init.zeros_(model.discriminator[-1].bias)
    model.discriminator[-1].weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    context = draws(step=8)
    loss, idle = (model.discriminator_loss({"image": images()}, each) for each in (context, draws(step=9)))
    real, fake = (context.shared[name] @ torch.tensor([3.0, 4.0]) for name in ("draws", "codes"))
    terms = {"adversarial": (1.0, ADVERSARIAL[name].discriminator(real, fake)), "drift": (0.5, real.square().mean())}
    terms |= {"r1": (8.0, torch.tensor(12.5)), "r2": (12.0, torch.tensor(12.5))}
    if ADVERSARIAL[name].penalises_gradients:
        terms["gradient_penalty"] = (10.0, torch.tensor(16.0))
    for term, (_, expected) in terms.items():
        torch.testing.assert_close(loss.terms[term], expected)
    torch.testing.assert_close(loss.total, sum(weight * term for weight, term in terms.values()))
    assert {"r1", "r2"}.isdisjoint(idle.terms)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_every_adversarial_loss_moves_both_players(name: str):
    """Of whom only WGAN's discriminator stays within a hundredth."""
    model = small(adversarial_loss=name, batch_images=8, images=16)
    before = {key: value.clone() for key, value in model.named_parameters() if key.endswith("weight")}
    pixels = images(20).add(1).mul(127.5).byte().numpy()
    data = Dataset.from_arrays({"train": {"image@4": pixels}})
    engine = Engine(model, lambda stage: Loader(data, stage.inputs, stage.batch_images, seed=0))
    engine.step()
    assert engine.update_counts == {"reconstruction": 1, "discriminator": 1, "encoder": 1}
    assert all(np.isfinite(value) for value in engine.losses().values())
    assert not any(torch.equal(model.get_parameter(key), value) for key, value in before.items())
    largest = max(weights.abs().max().item() for weights in model.discriminator.parameters())
    assert (largest <= 0.01) == (name == "wgan")


def test_both_coders_are_averaged_and_all_updates_slow_down_alike():
    """Samples are decoded codes, so the averaged decoder goes with the averaged encoder."""
    assert small().ema is None
    model = small(ema_half_life_images=100.0, linear_decay=True, images=1000)
    assert model.ema and model.ema.modules == ("encoder", "decoder")
    updates = model.updates(model.stages[0])
    assert [[update.schedule(images) for images in (0, 250, 1000)] for update in updates] == [[1.0, 0.75, 0.0]] * 3


def test_a_relativistic_encoder_compares_with_the_draws_that_the_discriminator_saw():
    model, context = small(adversarial_loss="relativistic_average"), draws()
    model.discriminator_loss({"image": images()}, context.begin(1))
    loss = model.encoder_loss({"image": images()}, context.begin(2))
    real, fake = (model.discriminator(context.shared[name]).squeeze(1) for name in ("draws", "codes"))
    torch.testing.assert_close(loss.total, ADVERSARIAL["relativistic_average"].discriminator(fake, real))


def test_what_shifts_images_is_refused():
    with pytest.raises(ValueError, match="consistency_weight shifts images, and the discriminator judges codes"):
        small(consistency_weight=1.0)


def test_codes_come_to_the_prior_while_images_are_kept():
    """Pictures of two factors; the codes, at first far from the prior, come to within what sampling it costs."""
    factors = torch.rand(2000, 2, generator=seeded()) * 2 - 1
    mixing = torch.randn(2, 16, generator=seeded(2))
    pixels = (torch.tanh(factors @ mixing).view(-1, 1, 4, 4) * 120 + 127).byte().numpy()
    data = Dataset.from_arrays({"train": {"image@4": pixels}})
    model = small(adversarial_learning_rate=2e-3, learning_rate=2e-3, batch_images=128)
    engine = Engine(model, lambda stage: Loader(data, stage.inputs, stage.batch_images, seed=0))
    held = torch.from_numpy(pixels[:500]).float() / 127.5 - 1

    @torch.no_grad()
    def discrepancy() -> Estimate:
        prior = model.prior(500, generator=seeded())
        return prior_mmd(prior, model.encode(held), generator=seeded(), replicates=20)

    before = discrepancy()
    for _ in range(400):
        engine.step()
    after = discrepancy()
    assert before.value > 10 * before.standard_error
    assert after.value < 3 * after.standard_error
    assert after.value < 0.1 * before.value
    error = (model.decode(model.encode(held)) - held).square().mean().item()
    assert error < 0.01 < 0.1 < held.var().item()


@pytest.mark.parametrize("prior", PRIOR_NAMES)
def test_samples_are_decoded_from_every_prior(prior: str):
    model = small(prior=prior)
    first = model.sample(5, generator=seeded(3))
    assert first.shape == (5, 1, 4, 4)
    assert model.prior_in_pairs == (prior in {"mixture_of_gaussians", "swiss_roll"})
    torch.testing.assert_close(first, model.decode(model.prior(5, generator=seeded(3))))
    assert not torch.equal(first, model.sample(5, generator=seeded(4)))


@pytest.mark.parametrize("prior", ["mixture_of_gaussians", "swiss_roll"])
def test_a_class_is_drawn_from_its_own_component(prior: str):
    model = small(prior=prior, conditional=True)
    assert model.stages[0].inputs["label"].column == "label"
    labels = torch.arange(4).repeat(50)
    made = model.sample(200, labels=labels, generator=seeded(3))
    normal = torch.randn(200, 2, generator=(generator := seeded(3)))
    codes = model._prior(normal, torch.rand(200, 2, generator=generator), labels)
    torch.testing.assert_close(made, model.decode(codes))


def test_the_discriminator_judges_codes_by_the_class_they_claim():
    model = small(prior="mixture_of_gaussians", conditional=True)
    batch = {"image": images(), "label": torch.tensor([0, 1, 2, 3, UNKNOWN, UNKNOWN])}
    context = draws().begin(1)
    loss = model.discriminator_loss(batch, context).total
    again = draws().begin(1)
    normal, uniform = again.randn(6, 2), again.rand(6, 2)
    told = torch.eye(5)[[0, 1, 2, 3, 4, 4]]
    real = model.discriminator(torch.cat((model._prior(normal, uniform, batch["label"]), told), dim=1))
    fake = model.discriminator(torch.cat((model.encode(images()), told), dim=1))
    softplus = torch.nn.functional.softplus
    torch.testing.assert_close(loss, softplus(-real).mean() + softplus(fake).mean())


def test_the_same_images_keep_their_labels_and_about_the_asked_share():
    model = small(prior="mixture_of_gaussians", conditional=True, labelled_share=0.3)
    pixels = torch.randint(0, 256, (4000, 1, 4, 4), dtype=torch.uint8, generator=seeded())
    labels = torch.ones(4000, dtype=torch.int64)
    first = model.preprocess({"image": pixels, "label": labels}, draws(0))["label"]
    other = model.preprocess({"image": pixels.flip(0), "label": labels}, draws(7))["label"]
    assert torch.equal(first, other.flip(0))
    assert (first == 1).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert set(first.tolist()) == {1, UNKNOWN}
    shares = np.histogram(pseudorandom(pixels).numpy(), bins=10, range=(0, 1))[0] / 4000
    np.testing.assert_allclose(shares, 0.1, atol=0.02)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"prior": "swiss_roll", "latent": 3}, "latent must be even"),
        ({"prior": "gaussian", "conditional": True}, "needs a prior with components"),
    ],
)
def test_priors_that_do_not_fit_are_refused(wrong: dict[str, object], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        small(**wrong)


def test_conditioning_needs_labels():
    config = {"conditional": True, "prior": "swiss_roll", "latent": 2}
    with pytest.raises(SpecError, match="needs a data set with labels"):
        build("adversarial_autoencoder", config, DataInfo(channels=1), seed=0)


def test_what_it_can_do():
    model = small()
    for capability in (Samples, Encodes, HasPrior):
        assert isinstance(model, capability)
    assert not isinstance(model, ScoresDensity)
    assert model.density is Density.IMPLICIT


@pytest.mark.parametrize("preset", Config.presets)
def test_presets_survive_json(preset: str):
    config = Config.preset(preset)
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
