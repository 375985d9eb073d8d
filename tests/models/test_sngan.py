"""SNGAN: the published counts, and spectral norms that stay at one while it trains."""

import pytest
import torch
from torch import nn

from genmodels.data.loader import Loader
from genmodels.models import build
from genmodels.models.base import DataInfo
from genmodels.models.sngan import SNGAN, Config
from genmodels.nn.spectral_norm import SpectralNorm
from genmodels.training.bench import random_data
from genmodels.training.engine import Engine

SMALL = {"resolution": 8, "latent": 8, "batch_images": 8, "generator_channels": 8, "discriminator_channels": 8}


def small(**config) -> SNGAN:
    model = build("sngan", SMALL | config, DataInfo(channels=3, classes=4), seed=0)
    assert isinstance(model, SNGAN)
    return model


def engine_of(model: SNGAN) -> Engine:
    return Engine(model, lambda s: Loader(random_data(s.inputs, 3, 4), s.inputs, s.batch_images, seed=0))


def counts(model: SNGAN) -> dict[str, int]:
    return {name: sum(p.numel() for p in network.parameters()) for name, network in model.networks().items()}


def test_parameter_counts_are_those_of_the_papers_networks():
    model = SNGAN(Config.preset("paper"), DataInfo(channels=3, classes=10))
    assert counts(model) == {"generator": 4_276_739, "discriminator": 1_053_825}


def test_labels_add_tables_to_the_norms_and_a_row_for_each_class_to_the_discriminator():
    """Scale and shift of six norms for ten classes instead of one, and an embedding."""
    model = SNGAN(Config.preset("projection"), DataInfo(channels=3, classes=10))
    tables = 6 * 2 * 256 * (10 - 1)
    assert counts(model) == {"generator": 4_276_739 + tables, "discriminator": 1_053_825 + 10 * 128}


def test_the_papers_training():
    """100,000 updates of the generator, each with five batches of 64 for the discriminator."""
    model = SNGAN(Config.preset("paper"), DataInfo(channels=3))
    (stage,) = model.stages
    discriminator, generator = model.updates(stage)
    steps = stage.images // stage.batch_images
    assert (steps / generator.interval_steps, steps / discriminator.interval_steps) == (100_000, 500_000)
    assert generator.optimizer.learning_rate == discriminator.optimizer.learning_rate == 2e-4
    assert generator.optimizer.betas == (0.0, 0.9)
    assert set(stage.inputs) == {"image"}


def test_every_layer_of_the_discriminator_and_none_of_the_generator_is_normalised():
    model = small()
    layers = [m for m in model.discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(layers) == 3 + 3 * 2 + 2
    assert all(isinstance(layer.normalized, SpectralNorm) for layer in layers)
    assert not any(isinstance(m, SpectralNorm) for m in model.generator.modules())


def test_singular_values_stay_near_one_with_one_iteration_a_forward():
    model = small(discriminator_learning_rate=2e-4)
    engine = engine_of(model)
    for _ in range(20):
        engine.step()
    model.eval()
    for layer in model.discriminator.modules():
        if isinstance(getattr(layer, "normalized", None), SpectralNorm):
            matrix = layer.normalized(layer.weight).detach().flatten(1)
            assert torch.linalg.svdvals(matrix)[0].item() == pytest.approx(1, abs=0.05)


def test_the_power_iterations_are_in_the_state_and_go_on_where_they_were():
    whole, first, second = (engine_of(small()) for _ in range(3))
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.step()
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert any(name.endswith("normalized.left") for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
