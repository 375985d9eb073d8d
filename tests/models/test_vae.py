"""VAE: its divergence, bounds where the likelihood is known, and the likelihood of a small one by quadrature."""

import json
import math
from typing import get_args

import pytest
import torch
from drawing import draws
from torch import Tensor

from genmodels.evaluation.density import HasTighterBound
from genmodels.losses import gaussian_kl
from genmodels.models import build
from genmodels.models.base import DataInfo, Density, Encodes, HasPrior, Samples, ScoresDensity
from genmodels.models.vae import VAE, Config, importance_log_weights, log_normal
from genmodels.nn.levels import to_levels

LIKELIHOODS = get_args(Config.model_fields["likelihood"].annotation)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**config) -> VAE:
    settings = {"resolution": 4, "hidden": (16,), "latent": 2} | config
    model = build("vae", settings, DataInfo(channels=1), seed=0)
    assert isinstance(model, VAE)
    return model


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=seeded(1)) * 2 - 1


@pytest.mark.parametrize(("mean", "variance", "expected"), [(0.0, 4.0, 0.806853), (1.0, 1.0, 0.5)])
def test_the_divergence_is_its_closed_form_and_monte_carlos(mean: float, variance: float, expected: float):
    kl = gaussian_kl(torch.tensor([[mean]]), torch.tensor([[variance]]).log()).item()
    assert kl == pytest.approx(expected, abs=1e-6)
    noise = torch.randn(200_000, 1, generator=seeded())
    log_q = log_normal(noise) - 0.5 * math.log(variance)
    ratios = log_q - log_normal(mean + math.sqrt(variance) * noise)
    assert ratios.mean().item() == pytest.approx(kl, abs=4 * ratios.std().item() / math.sqrt(200_000))


def linear_gaussian_bound(x: float, mean: float, variance: float, samples: int, repeats: int) -> Tensor:
    """Bounds for z ~ N(0, 1), x|z ~ N(z, 1), whose evidence is N(x; 0, 2)."""
    noise = torch.randn(samples, repeats, 1, generator=seeded())
    posterior = torch.full((repeats, 1), mean), torch.full((repeats, 1), math.log(variance))
    log_weights = importance_log_weights(lambda z: log_normal(z) + log_normal(x - z), *posterior, noise)
    return log_weights.logsumexp(dim=0) - math.log(samples)


@pytest.mark.parametrize(("x", "evidence"), [(0.0, -1.265512), (1.0, -1.515512)])
def test_with_the_exact_posterior_every_weight_is_the_evidence(x: float, evidence: float):
    bounds = linear_gaussian_bound(x, mean=x / 2, variance=0.5, samples=3, repeats=5)
    torch.testing.assert_close(bounds, torch.full((5,), evidence), atol=2e-6, rtol=0)


def test_with_the_prior_for_a_posterior_the_bounds_rise_towards_the_evidence():
    bounds = []
    for samples, expected in ((1, -1.9189), (5, -1.557), (50, -1.519)):
        found = linear_gaussian_bound(1.0, mean=0.0, variance=1.0, samples=samples, repeats=40_000)
        assert found.mean().item() == pytest.approx(expected, abs=4 * found.std().item() / 200 + 5e-4)
        bounds.append(found.mean().item())
    assert bounds == sorted(bounds)
    assert bounds[-1] < -1.515512


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_bound_of_many_samples_is_the_likelihood_by_quadrature(likelihood: str):
    """With one latent dimension, ln P(x) is an integral that a fine grid does."""
    model = small(likelihood=likelihood, latent=1, levels=4)
    grid = torch.linspace(-8, 8, 4001).view(-1, 1)
    exact = []
    for image in images(4):
        pixels = to_levels(image.expand(len(grid), 1, 4, 4), model.levels)
        integrand = model._log_likelihood_given(grid, pixels) + log_normal(grid)
        exact.append(integrand.logsumexp(dim=0) + math.log(16 / 4000))
    bound = model.importance_bound(images(4), 100_000, generator=seeded())
    torch.testing.assert_close(bound, torch.stack(exact).detach(), atol=0.03, rtol=0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_elbo_is_below_the_bound_and_equal_to_that_of_one_sample(likelihood: str):
    model = small(likelihood=likelihood)
    many_images = images(1).repeat(4000, 1, 1, 1)
    elbo = -model.loss({"image": many_images}, draws()).total
    single = model.log_likelihood(many_images, generator=seeded())
    assert single.mean().item() == pytest.approx(elbo.item(), abs=5 * single.std().item() / math.sqrt(4000))
    assert elbo.item() < model.importance_bound(many_images[:500], 50, generator=seeded()).mean().item()


def test_beta_weighs_the_divergence_alone_and_both_terms_are_logged():
    losses = [small(beta=beta).loss({"image": images()}, draws()) for beta in (1.0, 4.0)]
    for name in ("reconstruction", "kl"):
        torch.testing.assert_close(losses[0].terms[name], losses[1].terms[name])
    torch.testing.assert_close(losses[1].total - losses[0].total, 3 * losses[0].terms["kl"])


def test_the_bound_does_not_depend_on_how_many_latents_fit_into_memory(monkeypatch):
    model = small()
    whole = model.importance_bound(images(1), 40, generator=seeded())
    monkeypatch.setattr("genmodels.models.vae.DECODED_PIXELS", 16 * 16)  # torch draws by sixteens
    torch.testing.assert_close(model.importance_bound(images(1), 40, generator=seeded()), whole)


def test_what_it_can_do():
    model = small()
    for capability in (Samples, Encodes, HasPrior, ScoresDensity, HasTighterBound):
        assert isinstance(model, capability)
    assert model.density is Density.APPROXIMATE
    assert model.likelihood == "lower bound, the ELBO"
    assert (model.levels, small(likelihood="gaussian").levels) == (2, 256)
    made = model.sample(5, generator=seeded(3))
    assert made.shape == (5, 1, 4, 4)
    assert made.abs().max() <= 1
    torch.testing.assert_close(made, model.decode(torch.randn(5, 2, generator=seeded(3))))


def test_the_posterior_is_drawn_around_the_code():
    model = small()
    mean, log_variance = model._posterior(to_levels(images(1), 2))
    drawn = model.posterior(images(1).repeat(20_000, 1, 1, 1), generator=seeded())
    torch.testing.assert_close(model.encode(images(1)), mean)
    torch.testing.assert_close(drawn.mean(0, keepdim=True), mean.detach(), atol=0.04, rtol=0)
    torch.testing.assert_close(drawn.var(0, keepdim=True), log_variance.exp().detach(), atol=0, rtol=0.05)


def test_the_textbooks_network():
    model = build("vae", {"resolution": 28}, DataInfo(channels=1), seed=0)
    expected = (784 + 1) * 400 + (400 + 1) * 2 * 20 + (20 + 1) * 400 + (400 + 1) * 784
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("preset", Config.presets)
def test_presets_survive_json(preset: str):
    config = Config.preset(preset)
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
