"""Residual blocks against the operations that they are made of, written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from genmodels.nn.batch_norm import UnconditionalBatchNorm
from genmodels.nn.residual import DiscriminatorBlock, GeneratorBlock, ProjectionHead, ResampledConv2d


def features(channels: int = 3, size: int = 6) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def up(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("spectral", [False, True])
def test_convolutions_with_a_change_of_resolution(size, spectral):
    torch.manual_seed(0)
    for resample, before, behind in (("up", up, nn.Identity()), ("down", nn.Identity(), nn.AvgPool2d(2))):
        layer = ResampledConv2d(3, 4, size, resample=resample, spectral=spectral).double().eval()
        plain = F.conv2d(before(features()), layer.normalized(layer.weight), layer.bias, padding=size // 2)
        torch.testing.assert_close(layer(features()), behind(plain))


def test_the_generators_block():
    torch.manual_seed(0)
    block = GeneratorBlock(3, 4, norm=UnconditionalBatchNorm).double()
    one, two, short = ((c.weight, c.bias) for c in (block.conv1, block.conv2, block.shortcut))
    h = F.conv2d(up(F.relu(block.norm1(features()))), *one, padding=1)
    h = F.conv2d(F.relu(block.norm2(h)), *two, padding=1)
    torch.testing.assert_close(block(features()), h + F.conv2d(up(features()), *short))


@pytest.mark.parametrize(
    ("out", "down", "first"), [(4, True, True), (4, True, False), (4, False, False), (3, False, False)]
)
def test_the_discriminators_block(out, down, first):
    torch.manual_seed(0)
    block, x = DiscriminatorBlock(3, out, down=down, first=first).double().eval(), features()
    weights = {n: (c.normalized(c.weight), c.bias) for n, c in block.named_children() if not isinstance(c, nn.Identity)}
    h = F.conv2d(x if first else F.relu(x), *weights["conv1"], padding=1)
    h = F.conv2d(F.relu(h), *weights["conv2"], padding=1)
    short = F.conv2d(x, *weights["shortcut"]) if "shortcut" in weights else x
    assert ("shortcut" in weights) == (down or out != 3)
    torch.testing.assert_close(block(x), F.avg_pool2d(h + short, 2) if down else h + short)


def test_projection_adds_the_product_with_the_labels_row():
    torch.manual_seed(0)
    head, phi, labels = ProjectionHead(5, 3).eval(), torch.randn(4, 5), torch.tensor([0, 2, 1, 2])
    rows = head.embedding.normalized(head.embedding.weight)[labels]
    torch.testing.assert_close(head(phi, labels), head.linear(phi)[:, 0] + torch.einsum("bf,bf->b", rows, phi))


def test_with_an_embedding_of_zeros_projection_is_unconditional():
    torch.manual_seed(0)
    conditional, plain, phi = ProjectionHead(5, 3).eval(), ProjectionHead(5, 0).eval(), torch.randn(4, 5)
    plain.load_state_dict(conditional.state_dict(), strict=False)
    conditional.embedding.forward = lambda labels: torch.zeros(len(labels), 5)
    torch.testing.assert_close(conditional(phi, torch.tensor([0, 2, 1, 2])), plain(phi, None))
