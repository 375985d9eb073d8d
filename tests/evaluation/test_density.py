"""Likelihoods with known values: a uniform model, pixels of known frequencies, and the classes and seed it is given."""

import math

import pytest
import torch
from torch import Tensor, nn

from genmodels.evaluation import density
from genmodels.models import build
from genmodels.models.base import DataInfo
from genmodels.models.vae import VAE


class Uniform(nn.Module):
    """Every level of every pixel is as likely as any other."""

    levels, likelihood = 4, "exact"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []

    def log_likelihood(self, images: Tensor, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        self.seen.append(torch.rand(1, generator=generator) if labels is None else labels)
        return torch.full((len(images),), -images[0].numel() * math.log(self.levels))


def bytes_of(n: int, resolution: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, resolution, resolution), dtype=torch.uint8, generator=generator)


def test_a_uniform_model_of_four_levels_takes_two_bits_a_dimension(monkeypatch):
    counted = []
    model = Uniform()
    nats = density.nats(model, bytes_of(300), labels=None, progress=counted.append)
    assert nats.dtype == torch.float64
    assert density.bits_per_dim(nats, 3 * 8 * 8).tolist() == pytest.approx([2.0] * 300)
    assert counted == [256, 44]
    density.nats(model, bytes_of(300), labels=None, progress=counted.append)
    assert model.seen[:2] == model.seen[2:]  # the same draws


def test_a_conditional_model_is_given_the_classes():
    model, labels = Uniform(), torch.arange(300)
    density.nats(model, bytes_of(300), labels=labels, progress=lambda n: None)
    assert torch.equal(torch.cat(model.seen), labels)


def idle_vae(mean: float) -> VAE:
    """Whose decoder takes every pixel for black or white with equal odds, whatever z is, so that 16 pixels have 16 ln 2
    nats, and q(z|x) = N(mean, 1) lies mean^2 / 2 from the prior."""
    config = {"resolution": 4, "hidden": (4,), "latent": 1}
    model = build("vae", config, DataInfo(channels=1), seed=0)
    assert isinstance(model, VAE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        list(model.encoder.parameters())[-1].copy_(torch.tensor([mean, 0.0]))
    return model


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_the_elbo_exceeds_the_likelihood_by_the_divergence_and_the_tighter_bound_hardly(mean: float):
    model, images, counted = idle_vae(mean), bytes_of(2000, 4)[:, :1], []
    elbo = density.nats(model, images, labels=None, progress=counted.append)
    assert sum(counted) == 2000
    assert elbo.mean().item() == pytest.approx(16 * math.log(2) + mean**2 / 2, abs=4 * mean / 2000**0.5 + 1e-5)
    tighter = density.bounded_nats(model, images, 500, progress=counted.append).mean()
    assert tighter.item() == pytest.approx(16 * math.log(2), abs=0.01 * mean + 1e-5)


def test_the_bound_of_one_sample_is_the_elbo():
    model, images = idle_vae(1.0), bytes_of(300, 4)[:, :1]
    one = density.bounded_nats(model, images, 1, progress=lambda n: None)
    assert torch.equal(density.nats(model, images, labels=None, progress=lambda n: None), one)


def test_only_who_has_a_tighter_bound_has_an_elbo_beside_it():
    assert isinstance(idle_vae(1.0), density.HasTighterBound)
    assert not isinstance(Uniform(), density.HasTighterBound)


def test_independent_pixels_take_their_entropy(monkeypatch):
    """One pixel is white in 3 of 4 images, another in half of them: with Laplace's rule 4/6 and 3/6."""
    monkeypatch.setattr(density, "CHUNK", 1)
    train = torch.tensor([[255, 0], [255, 255], [255, 0], [0, 255]], dtype=torch.uint8).view(4, 1, 1, 2)
    test = torch.tensor([[255, 255], [0, 0]], dtype=torch.uint8).view(2, 1, 1, 2)
    nats = density.independent_pixels(train, test, levels=2)
    assert nats.tolist() == pytest.approx([-math.log(4 / 6 * 3 / 6), -math.log(2 / 6 * 3 / 6)])
