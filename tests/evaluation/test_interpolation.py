"""Paths of known length, and models whose samples are decoded from their prior."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import perceptual_path_length

from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.interpolation import (
    STEP,
    WALK_IMAGES,
    Path,
    arithmetic,
    on_the_way,
    path_lengths,
    spherical,
    walks,
)
from genmodels.models import MODELS, build
from genmodels.models.base import DataInfo, FromLatents, HasPrior
from genmodels.models.flow import Flow
from genmodels.nn.levels import from_levels, to_levels

PIXELS = Extractor("pixels", "", "none", lambda images: images.flatten(1), torch.device("cpu"))
TWICE = Extractor("twice", "", "none", lambda images: 2 * images.flatten(1), torch.device("cpu"))
TINY: dict[str, dict[str, Any]] = {
    "adversarial_autoencoder": {"resolution": 8, "hidden": (8,), "latent": 4},
    "adversarial_autoencoder conditional": {
        **{"resolution": 8, "hidden": (8,), "latent": 4},
        **{"prior": "mixture_of_gaussians", "conditional": True},
    },
    "biggan": {"resolution": 8, "latent": 8, "channels": 8, "embedding": 8},
    "conditional_gan": {"resolution": 8, "channels": 4, "latent": 8},
    "dcgan": {"resolution": 8, "coarsest": 2, "latent": 8, "generator_channels": 4, "discriminator_channels": 4},
    "flow": {"resolution": 8, "scales": 1, "steps": 1, "hidden_channels": 4, "levels": 17},
    "gan": {"resolution": 4, "latent": 8, "generator_units": 16, "discriminator_units": 8},
    "infogan": {"resolution": 8, "latent": 4, "hidden_units": 16, "channels": 4, "recognition_units": 8},
    "progressive_gan": {"resolution": 8, "latent": 8, "fmap_max": 8},
    "progressive_gan conditional": {"resolution": 8, "latent": 8, "fmap_max": 8, "conditional": True},
    "sagan": {"resolution": 8, "latent": 8, "channels": 8},
    "sngan": {"resolution": 8, "latent": 8, "generator_channels": 4, "discriminator_channels": 4},
    "vae": {"resolution": 8, "hidden": (8,), "latent": 4},
}


class Linear(nn.Module):
    """An image is a latent, on the unit circle, times a number that its class adds to."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        return self.decode(self.prior(n, generator=generator), labels)

    def prior(self, n: int, *, generator: torch.Generator) -> Tensor:
        angle = 2 * math.pi * torch.rand(n, 1, generator=generator)
        return torch.cat((angle.cos(), angle.sin()), dim=1)

    def decode(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        enlarged = 1.0 if labels is None else (1.0 + labels)[:, None]
        return (enlarged * codes).view(-1, 1, 1, 2)


def test_the_path_on_a_circle_is_its_angle():
    """The speed on the way is the angle between the two, so its square is what every place of the path gives."""
    model, counted = Linear(), []
    generator = torch.Generator().manual_seed(0)
    start, end = (model.prior(50, generator=generator) for _ in range(2))
    angles = (start * end).sum(dim=1).clamp(-1, 1).acos()
    once, twice = path_lengths(model, [PIXELS, TWICE], 50, resolution=8, labels=None, progress=counted.append)
    torch.testing.assert_close(once, angles.square(), rtol=5e-3, atol=1e-3)
    torch.testing.assert_close(twice, 4 * once, rtol=1e-3, atol=1e-4)
    assert counted == [50]
    (labelled,) = path_lengths(model, [PIXELS], 50, resolution=8, labels=torch.arange(50), progress=counted.append)
    torch.testing.assert_close(labelled, (1 + torch.arange(50)) ** 2 * once, rtol=1e-2, atol=1e-3)


class Decoder(nn.Module):
    """A small network in double precision, so that what is left of a small step is not rounding."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3 * 4 * 4), nn.Tanh()).double()

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        return self.decode(self.prior(n, generator=generator))

    def prior(self, n: int, *, generator: torch.Generator) -> Tensor:
        return torch.randn(n, 6, generator=generator, dtype=torch.float64)

    def decode(self, codes: Tensor) -> Tensor:
        return self.network(codes).view(-1, 3, 4, 4)


class Given(nn.Module):
    """For torchmetrics: what it samples are these latents one after the other, and images, in 0..255, are made of any
    by `decode`."""

    def __init__(self, latents: list[Tensor], decode: Callable[[Tensor], Tensor]):
        super().__init__()
        self.latents, self.decode = latents, decode

    def sample(self, num_samples: int) -> Tensor:
        return self.latents.pop(0)

    def forward(self, latents: Tensor) -> Tensor:
        return (self.decode(latents) + 1) * 127.5


class Distance(nn.Module):
    """For torchmetrics: a distance of two images in the place of LPIPS."""

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.distance = distance

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.distance(one, other)


def test_path_lengths_are_torchmetrics_of_the_same_draws():
    """Its latents are here both ends and the place of a path and how far to move the place, of which its interpolation
    moves the last. It is told to leave no path out, as it does with the longest and shortest hundredth."""

    def between(latents: Tensor) -> Tensor:
        start, end, place, moved = latents.split((6, 6, 1, 1), dim=1)
        return model.decode(spherical(start, end, place + moved))

    model = Decoder()
    projection = torch.randn(48, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    extractor = replace(PIXELS, network=lambda images: (images.flatten(1) @ projection).tanh())
    (ours,) = path_lengths(model, [extractor], 100, resolution=4, labels=None, progress=lambda n: None)
    generator = torch.Generator().manual_seed(0)
    start, end = (model.prior(100, generator=generator) for _ in range(2))
    place = torch.rand(100, 1, generator=generator, dtype=torch.float64) * (1 - STEP)
    latents = [torch.cat((start, end, place, torch.full_like(place, moved)), dim=1) for moved in (0.0, 1.0)]
    mean, _, theirs = perceptual_path_length(
        Given(latents, between),  # type: ignore[arg-type]
        num_samples=100,
        epsilon=STEP,
        resize=None,
        lower_discard=None,
        upper_discard=None,
        sim_net=Distance(lambda one, other: (extractor(one) - extractor(other)).square().sum(dim=1)),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert mean.item() == pytest.approx(ours.mean().item(), rel=1e-6)
    assert ours.std() > 0.1 * ours.mean(), "they differ from path to path"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_great_circle_is_that_of_torchmetrics(share: float):
    """What it decodes is shown to its distance, and is here the latents themselves."""
    start, end = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = spherical(start, end, torch.full((20, 1), share, dtype=torch.float64))
    compared = []

    def seen(one: Tensor, other: Tensor) -> Tensor:
        compared.append((one, other))
        return one.sum(dim=1)

    perceptual_path_length(
        Given([start, end], lambda latents: latents),  # type: ignore[arg-type]
        num_samples=20,
        interpolation_method="slerp_any",
        epsilon=share,
        resize=None,
        sim_net=Distance(seen),
    )
    [(one, other)] = compared
    torch.testing.assert_close(one, start)
    torch.testing.assert_close(other, expected)


def test_a_great_circle_goes_through_the_middle_and_keeps_to_its_ends():
    east, north = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    shares = torch.tensor([[0.0], [0.5], [1.0]])
    found = spherical(east.expand(3, 2), north.expand(3, 2), shares)
    expected = [[2, 0], [2 / math.sqrt(2), 4 / math.sqrt(2)], [0, 4]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-6)
    there = spherical(east, -east, torch.tensor([[0.25]]))  # no great circle is the shortest
    torch.testing.assert_close(there, torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("path", [spherical, torch.lerp])
def test_walks_begin_and_end_at_draws_of_the_prior(path: Path):
    images = walks(Linear(), 3, path, labels=None)
    assert images.shape == (3, WALK_IMAGES, 1, 1, 2)
    generator = torch.Generator().manual_seed(0)
    for place, drawn in ((0, Linear().prior(3, generator=generator)), (-1, Linear().prior(3, generator=generator))):
        torch.testing.assert_close(images[:, place].flatten(1).float(), (drawn + 1) * 127.5, atol=0.51, rtol=0)


def test_the_way_from_one_latent_to_another_is_in_equal_steps():
    start, end = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[8.0, 16.0], [1.0, -7.0]])
    found = on_the_way(start, end, torch.lerp)
    assert found[:WALK_IMAGES].tolist() == [[step, 2 * step] for step in range(9)]
    assert found[WALK_IMAGES:].tolist() == [[1, 1 - step] for step in range(9)]


def test_arithmetic_is_that_of_the_averages_of_three_classes():
    """Images are their latents, and a latent's class is its quadrant."""
    quadrants = replace(
        PIXELS, head=lambda pixels: pixels.sign() @ torch.tensor([[-2.0, -2.0, 2.0, 2.0], [-1, 1, -1, 1]])
    )
    rows = arithmetic(Linear(), quadrants)
    assert rows is not None
    points = rows.flatten(2).float() / 127.5 - 1
    *concepts, results = points
    for concept in concepts:
        assert len((concept > 0).unique(dim=0)) == 1, "of one class"
        inside = (concept.abs() < 1).all()
        assert not inside or torch.allclose(concept[:3].mean(0), concept[3], atol=0.01)
    a, b, c = (concept[3] for concept in concepts)
    torch.testing.assert_close(results[3], (a - b + c).clamp(-1, 1), atol=0.02, rtol=0)
    assert (results[:3] - results[3]).abs().max() <= 0.26


def test_arithmetic_needs_three_classes():
    assert arithmetic(Linear(), replace(PIXELS, head=lambda pixels: pixels)) is None


@pytest.mark.parametrize("name", TINY)
def test_a_sample_is_a_draw_of_the_prior_decoded(name: str):
    """Of its label's part, if it is also a prior of codes; and a flow rounds its samples to levels."""
    model = build(name.split()[0], TINY[name], DataInfo(channels=3, classes=4), seed=0).eval()
    assert isinstance(model, FromLatents)
    given = {"labels": torch.arange(3)} if "label" in model.stages[-1].inputs else {}
    sampled = model.sample(3, **given, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        of_labels = given if isinstance(model, HasPrior) else {}
        codes = model.prior(3, **of_labels, generator=torch.Generator().manual_seed(0))
        decoded = model.decode(codes, **given)
    assert decoded.shape == sampled.shape
    if isinstance(model, Flow):
        decoded = from_levels(to_levels(decoded, model.levels), model.levels)
    assert torch.equal(sampled, decoded)


def test_every_model_that_samples_from_latents_is_among_these():
    """Beside those that draw pixel by pixel, or code by code."""
    from_latents = {name for name, model in MODELS.items() if hasattr(model, "prior") and hasattr(model, "decode")}
    assert from_latents == {name.split()[0] for name in TINY}
