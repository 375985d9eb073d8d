"""Convolutions by minimal filtering against torch's direct ones."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from genmodels.nn.winograd import ReflectingConv2d, winograd_conv2d


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize(("height", "width"), [(6, 6), (10, 6), (14, 18)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_is_a_convolution_and_has_its_gradients(height: int, width: int, memory_format: torch.memory_format):
    x = drawn(2, 5, height, width).detach().to(memory_format=memory_format).requires_grad_()
    weight, bias = drawn(7, 5, 3, 3, seed=1), drawn(7, seed=2)
    towards = (x, weight, bias)
    ours, direct = winograd_conv2d(*towards), F.conv2d(*towards)
    torch.testing.assert_close(ours, direct, rtol=1e-12, atol=1e-12)
    gradient = torch.randn(direct.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for mine, theirs in zip(*(torch.autograd.grad(y, towards, gradient) for y in (ours, direct)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_it_can_be_differentiated_twice():
    towards = (drawn(1, 2, 6, 10), drawn(3, 2, 3, 3, seed=1), drawn(3, seed=2))
    assert gradcheck(winograd_conv2d, towards)
    assert gradgradcheck(winograd_conv2d, towards)


def test_in_fp32_it_rounds_a_few_times_as_coarsely_as_the_direct_one():
    x, weight = drawn(2, 256, 18, 18).detach(), drawn(64, 256, 3, 3, seed=1).detach()
    exact = F.conv2d(x, weight)
    ours = winograd_conv2d(x.float(), weight.float(), None)
    assert float((ours - exact).norm() / exact.norm()) < 2.5e-6  # 2.1e-6; 3.2e-6 at the points 0, 1, -1, 2 and -2


@pytest.mark.parametrize("size", [8, 7])
def test_images_are_continued_by_reflection_whatever_their_size(size: int):
    ours = ReflectingConv2d(3, 4).double()
    torchs = nn.Conv2d(3, 4, kernel_size=3, padding=1, padding_mode="reflect").double()
    torchs.load_state_dict(ours.state_dict())
    x = drawn(2, 3, size, size)
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-12, atol=1e-12)


def test_an_exported_program_convolves_directly():
    layer, x = ReflectingConv2d(3, 4), drawn(2, 3, 8, 8).float()
    program = torch.export.export(layer, (x,))
    assert torch.ops.aten.conv2d.default in {node.target for node in program.graph.nodes}
    torch.testing.assert_close(program.module()(x), layer(x))
