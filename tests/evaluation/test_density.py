"""Likelihoods with known values: a uniform model, pixels of known frequencies, and the classes and seed it is given."""

import math

import pytest
import torch
from torch import Tensor, nn

from genmodels.evaluation import density


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


def test_independent_pixels_take_their_entropy(monkeypatch):
    """One pixel is white in 3 of 4 images, another in half of them: with Laplace's rule 4/6 and 3/6."""
    monkeypatch.setattr(density, "CHUNK", 1)
    train = torch.tensor([[255, 0], [255, 255], [255, 0], [0, 255]], dtype=torch.uint8).view(4, 1, 1, 2)
    test = torch.tensor([[255, 255], [0, 0]], dtype=torch.uint8).view(2, 1, 1, 2)
    nats = density.independent_pixels(train, test, levels=2)
    assert nats.tolist() == pytest.approx([-math.log(4 / 6 * 3 / 6), -math.log(2 / 6 * 3 / 6)])
