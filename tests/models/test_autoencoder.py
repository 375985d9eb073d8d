"""Autoencoder: a linear one finds PCA's subspace and error, a batch can be learnt by heart, and it does not sample."""

import json

import pytest
import torch
from drawing import draws
from torch import Tensor

from genmodels.models import build
from genmodels.models.autoencoder import Autoencoder, Config
from genmodels.models.base import DataInfo, Density, Encodes, HasPrior, Samples, ScoresDensity


def small(**config) -> Autoencoder:
    model = build("autoencoder", {"resolution": 4, "hidden": (), "code": 3} | config, DataInfo(channels=1), seed=0)
    assert isinstance(model, Autoencoder)
    return model


def train(model: Autoencoder, images: Tensor, steps: int) -> float:
    """The loss after L-BFGS on the whole batch, which needs no schedule to end at the minimum."""
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=0)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = model.reconstruction_loss({"image": images}, draws()).total
        value.backward()
        return value

    optimizer.step(loss)
    return model.reconstruction_loss({"image": images}, draws()).total.item()


def test_a_linear_autoencoder_reaches_pcas_error_and_subspace():
    """The error of the best projection to three dimensions is the sum of the other eigenvalues of the covariance."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([3.0, 2.0, 1.5] + 13 * [0.5])
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    pixels = (torch.randn(100, 16, generator=generator) * scale) @ rotation + 0.3
    eigenvalues, eigenvectors = torch.linalg.eigh(torch.cov(pixels.T, correction=0))
    expected = eigenvalues[:-3].sum().item()
    model = small()
    assert train(model, pixels.view(100, 1, 4, 4), steps=150) == pytest.approx(expected, rel=1e-3)
    spanned = torch.linalg.qr(model.decoder[0].weight)[0]
    cosines = torch.linalg.svdvals(spanned.T @ eigenvectors[:, -3:])
    torch.testing.assert_close(cosines, torch.ones(3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
def test_a_batch_is_learnt_by_heart_with_a_code_as_large(architecture: str):
    images = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    model = small(resolution=4, hidden=(32,), width=8, code=16, architecture=architecture)
    before = model.reconstruction_loss({"image": images}, draws()).total.item()
    assert train(model, images, steps=60) < 0.05 * before


def test_the_loss_is_summed_over_pixels_and_averaged_over_images():
    model = small()
    images = torch.rand(2, 1, 4, 4)
    made = model.decode(model.encode(images))
    expected = sum((a - b) ** 2 for a, b in zip(made.flatten(), images.flatten(), strict=True)) / 2
    torch.testing.assert_close(model.reconstruction_loss({"image": images}, draws()).total, expected)


def test_it_has_codes_and_no_distribution_of_them():
    model = small()
    assert isinstance(model, Encodes)
    assert not isinstance(model, Samples | ScoresDensity | HasPrior)
    assert model.density is Density.NONE


@pytest.mark.parametrize("preset", Config.presets)
def test_presets_survive_json(preset: str):
    config = Config.preset(preset)
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
