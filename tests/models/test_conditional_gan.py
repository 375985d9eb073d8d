"""Conditional GAN: the two ways of telling the discriminator the class, and the shapes of its networks."""

import pytest
import torch
from torch.nn import functional as F

from genmodels.models import build
from genmodels.models.base import DataInfo
from genmodels.models.conditional_gan import ConditionalGAN, Config

LABELS = torch.tensor([0, 2, 1, 2])


def small(**config) -> ConditionalGAN:
    model = build("conditional_gan", {"resolution": 16, "latent": 8, "channels": 4} | config, DataInfo(3, 4), seed=0)
    assert isinstance(model, ConditionalGAN)
    return model


def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_widths_and_counts_of_the_32x32_networks():
    """Table 3 of Miyato et al.: 512 channels at 4x4, 64 at 32x32. Counts are of its layer list, with batch norms by
    class in the generator, and a projection in place of the discriminator's dense layer."""
    model = ConditionalGAN(Config(), DataInfo(channels=3, classes=10))
    assert model.config.widths == [512, 256, 128, 64]

    def conv(one: int, other: int, size: int, bias: int) -> int:
        return one * other * size**2 + bias

    generator = 128 * 512 * 16 + 512 * 16 + 2 * 10 * (512 + 256 + 128 + 64)
    generator += conv(512, 256, 4, 256) + conv(256, 128, 4, 128) + conv(128, 64, 4, 64) + conv(64, 3, 3, 3)
    discriminator = conv(3, 64, 3, 64) + conv(64, 128, 4, 128) + conv(128, 256, 4, 256) + conv(256, 512, 4, 512)
    discriminator += conv(128, 128, 3, 128) + conv(256, 256, 3, 256) + conv(512, 512, 3, 512) + 512 + 1 + 10 * 512
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in model.networks().items()}
    assert counts == {"generator": generator, "discriminator": discriminator}


def test_projection_adds_the_product_of_the_features_with_the_labels_row():
    discriminator = small().discriminator.eval()
    features = {}
    discriminator.head.register_forward_pre_hook(lambda module, args: features.update(phi=args[0]))
    logits = discriminator(images(), LABELS)
    embedding = discriminator.head.embedding
    rows = embedding.normalized(embedding.weight)[LABELS]
    torch.testing.assert_close(logits - discriminator(images(), None), (rows * features["phi"]).sum(1))


def test_concatenation_shows_the_label_as_maps_beside_the_image():
    discriminator = small(conditioning="concatenation").discriminator.eval()
    seen = {}
    discriminator.first.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    discriminator(images(), LABELS)
    assert torch.equal(seen["x"][:, :3], images())
    assert torch.equal(seen["x"][:, 3:], F.one_hot(LABELS, 4).float().view(4, 4, 1, 1).expand(-1, -1, 16, 16))
    assert discriminator.head.embedding is None


@pytest.mark.parametrize("conditioning", ["projection", "concatenation"])
def test_the_logit_depends_on_the_label(conditioning):
    discriminator = small(conditioning=conditioning).discriminator.eval()
    one, two = (discriminator(images(), labels) for labels in (LABELS, torch.tensor([0, 2, 1, 3])))
    torch.testing.assert_close(one[:3], two[:3])
    assert not torch.allclose(one[3], two[3])
