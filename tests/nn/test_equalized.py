"""Equalised layers against the formula of the paper, written out."""

import math

import pytest
import torch
from torch.nn import functional as F

from genmodels.nn.equalized import EqualizedConv2d, EqualizedLinear, EqualizedUpsampleConv2d


@pytest.mark.parametrize("size", [1, 4, 16])
def test_convolution_uses_weights_times_hes_constant(size):
    """Small maps (where the input is scaled) and large ones (where the weights are) follow the same formula."""
    torch.manual_seed(0)
    layer = EqualizedConv2d(3, 5, 3)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, size, size)
    expected = F.conv2d(x, layer.weight * math.sqrt(2 / 27), layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_upsampling_convolution_equals_the_two_operations(size):
    torch.manual_seed(0)
    layer = EqualizedUpsampleConv2d(3, 5)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, size, size)
    larger = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(larger, layer.weight * math.sqrt(2 / 27), layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)


def test_dense_layer_uses_weights_times_the_gain_over_the_root_of_the_fan_in():
    torch.manual_seed(0)
    layer = EqualizedLinear(50, 4, gain=0.5)
    x = torch.randn(3, 50)
    torch.testing.assert_close(layer(x), x @ layer.weight.T * (0.5 / math.sqrt(50)))


def test_stored_weights_are_standard_normal():
    torch.manual_seed(0)
    weight = EqualizedConv2d(64, 64, 3).weight
    assert weight.mean().abs() < 0.02
    assert weight.std().item() == pytest.approx(1, abs=0.02)


def test_activations_keep_their_scale_through_many_layers():
    """He's constant preserves the mean square through leaky ReLUs of slope 0, whatever the width."""
    torch.manual_seed(0)
    x = torch.randn(256, 64)
    for width_in, width_out in [(64, 512), (512, 128), (128, 256)]:
        x = F.relu(EqualizedLinear(width_in, width_out)(x))
    assert x.square().mean().item() == pytest.approx(1, rel=0.25)
