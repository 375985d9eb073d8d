"""Shapes at every resolution, the textbook's parameter count, and images that do not see each other."""

import pytest
import torch

from genmodels.nn.coders import Architecture, decoder, encoder


@pytest.mark.parametrize("resolution", [4, 7, 8, 28, 32, 48])
@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
def test_a_decoder_gives_images_of_the_encoders_size(architecture: Architecture, resolution: int):
    shape = architecture, 3, resolution, 5
    images = torch.randn(2, 3, resolution, resolution)
    codes = encoder(*shape, hidden=(16, 8), width=4)(images)
    assert codes.shape == (2, 5)
    assert decoder(*shape, hidden=(16, 8), width=4)(codes).shape == images.shape


def test_parameters_of_784_400_20_400_784():
    shape = "dense", 1, 28, 20
    both = torch.nn.ModuleList([encoder(*shape, hidden=(400,), width=1), decoder(*shape, hidden=(400,), width=1)])
    expected = (784 + 1) * 400 + (400 + 1) * 20 + (20 + 1) * 400 + (400 + 1) * 784
    assert sum(p.numel() for p in both.parameters()) == expected


def test_sides_are_halved_down_to_the_last_even_one():
    """28 -> 14 -> 7: the last linear layer reads 4 times the width at 7x7."""
    network = encoder("convolutional", 1, 28, 6, hidden=(), width=8)
    assert network[-1].weight.shape == (6, 4 * 8 * 7 * 7)


@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
def test_an_images_code_does_not_depend_on_the_others(architecture: Architecture):
    network = encoder(architecture, 1, 8, 3, hidden=(16,), width=4)
    images = torch.randn(5, 1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(images)[2].sum(), images)
    reached = gradient.flatten(1).abs().sum(1) > 0
    assert reached.tolist() == [False, False, True, False, False]
