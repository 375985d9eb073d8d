"""SAGAN: its counts, where its attention is, and what that does while gamma is zero."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from genmodels.models import build
from genmodels.models.base import DataInfo
from genmodels.models.sagan import SAGAN, Config
from genmodels.nn.attention import SelfAttention
from genmodels.nn.spectral_norm import SpectralNorm

LABELS = torch.tensor([0, 2, 1, 2])


def small(**config) -> SAGAN:
    model = build("sagan", {"resolution": 16, "latent": 8, "channels": 8} | config, DataInfo(3, 4), seed=0)
    assert isinstance(model, SAGAN)
    return model


def test_the_networks_for_imagenet_have_the_published_size():
    """81.5 million parameters in both, which BigGAN's table 1 gives for SAGAN, its baseline."""
    with torch.device("meta"):
        model = SAGAN(Config(), DataInfo(channels=3, classes=1000))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(81.5, abs=0.05)


def test_two_time_scales():
    """One update each with Adam (0, 0.9), the discriminator's four times as large."""
    model = small()
    discriminator, generator = model.updates(model.stages[0])
    assert (discriminator.optimizer.learning_rate, generator.optimizer.learning_rate) == (4e-4, 1e-4)
    assert discriminator.interval_steps == generator.interval_steps == 1
    assert discriminator.optimizer.betas == generator.optimizer.betas == (0.0, 0.9)


@pytest.mark.parametrize(
    ("resolution", "attention", "size", "generator", "discriminator"),
    [(128, 32, 32, 256, 128), (128, 64, 64, 128, 64), (32, 32, 16, 256, 256), (8, 32, 4, 256, 256)],
)
def test_attention_is_at_its_resolution_in_both_networks(resolution, attention, size, generator, discriminator):
    """With the channels that the networks have there: 64 x 4 at 32x32 in the generator for 128x128, and so on."""
    seen = []

    def note(module, args):
        seen.append(args[0].shape[1:])

    with torch.device("meta"):
        model = SAGAN(Config(resolution=resolution, attention_resolution=attention), DataInfo(3, 10))
        for module in model.modules():
            if isinstance(module, SelfAttention):
                module.register_forward_pre_hook(note)
        labels = torch.zeros(2, dtype=torch.int64)
        images = model.generator(torch.zeros(2, 128), labels)
        model.discriminator(images, labels)
    assert images.shape == (2, 3, resolution, resolution)
    assert seen == [(generator, size, size), (discriminator, size, size)]


def test_at_first_attention_changes_nothing_and_yet_learns():
    model = small().eval()
    blocks = [module for module in model.modules() if isinstance(module, SelfAttention)]
    assert len(blocks) == 2
    latent = torch.randn(4, 8)
    images = model.generator(latent, LABELS)
    logits = model.discriminator(images, LABELS)
    for block in blocks:
        nn.init.normal_(block.value.weight)
    torch.testing.assert_close(model.discriminator(model.generator(latent, LABELS), LABELS), logits)
    slopes = torch.autograd.grad(logits.sum(), [block.gamma for block in blocks])
    assert all(slope != 0 for slope in slopes)


def test_every_layer_of_both_networks_is_normalised():
    layers = [m for m in small().modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert all(isinstance(layer.normalized, SpectralNorm) for layer in layers)


@pytest.mark.parametrize("attention", [4, 12])
def test_a_resolution_that_one_network_does_not_have_is_refused(attention):
    with pytest.raises(ValidationError, match="take 16 or 8"):
        Config(resolution=32, attention_resolution=attention)
