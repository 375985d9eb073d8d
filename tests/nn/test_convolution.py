"""Convolutions against torch's own, gradients of the first and second order included."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from genmodels.nn.convolution import (
    NarrowConv2d,
    conv2d,
    downsampled_conv2d,
    input_gradient_differentiable,
    upsampled_conv2d,
)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolution_to_few_channels_is_torchs(memory_format):
    torch.manual_seed(0)
    layer = NarrowConv2d(5, 3, kernel_size=7).double()
    x = torch.randn(2, 5, 12, 15, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    inputs = (x, layer.weight, layer.bias)
    ours, theirs = layer(x), F.conv2d(*inputs)
    torch.testing.assert_close(ours, theirs)
    slope = torch.randn_like(ours)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, slope), torch.autograd.grad(theirs, inputs, slope))


@pytest.mark.parametrize(("size", "padding"), [(3, 1), (1, 0)])
def test_the_penalised_convolution_has_torchs_gradients_twice(size, padding):
    """A norm of the input's gradient through two layers and a curved activation, towards weights, bias and input."""
    torch.manual_seed(0)
    shapes = [(3, 2, size, size), (2, 3, size, size), (3,), (2,)]
    first, second, bias, other = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    images = torch.randn(2, 2, 5, 6, dtype=torch.float64)

    def gradients(convolution) -> tuple[torch.Tensor, ...]:
        x = images.clone().requires_grad_()
        hidden = F.silu(convolution(x, first, bias, padding=padding))
        logits = convolution(hidden, second, other, padding=padding).square().sum()
        (slope,) = torch.autograd.grad(logits, x, create_graph=True)
        penalty = slope.square().sum() + logits
        return (slope.detach(), *torch.autograd.grad(penalty, (first, second, bias, other, x)))

    with input_gradient_differentiable():
        ours = gradients(conv2d)
    torch.testing.assert_close(ours, gradients(F.conv2d))


@pytest.mark.parametrize("size", [2, 6])
def test_resampling_convolutions_are_the_two_operations(size):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, size, size), torch.randn(4, 3, 3, 3), torch.randn(4)
    larger = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(upsampled_conv2d(x, weight, bias), F.conv2d(larger, weight, bias, padding=1))
    smaller = F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2)
    torch.testing.assert_close(downsampled_conv2d(x, weight, bias), smaller)
    with input_gradient_differentiable():
        torch.testing.assert_close(downsampled_conv2d(x, weight, bias), smaller)


@pytest.mark.parametrize("convolution", [partial(conv2d, padding=1), downsampled_conv2d])
def test_what_is_differentiated_once_under_autocast_is_as_without_a_penalty(convolution):
    """The logits of consistency come from the same critic as those of the penalties."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((2, 3, 8, 8), (4, 3, 3, 3), (4,))]

    def gradients() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            logits = convolution(*inputs)
        return [logits, *torch.autograd.grad(logits.float().square().sum(), inputs)]

    plain = gradients()
    with input_gradient_differentiable():
        assert all(torch.equal(*pair) for pair in zip(gradients(), plain, strict=True))


def test_outside_a_penalty_the_convolution_is_torchs_own():
    """A Python function in its place would make weight gradients that the generator's update prunes."""
    x, weight, bias = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3, requires_grad=True), torch.zeros(3)
    with input_gradient_differentiable():
        pass
    assert type(conv2d(x, weight, bias, padding=1).grad_fn).__name__ == "ConvolutionBackward0"
