"""Convolutions equal to torch's, for the few places where torch's take several times what the arithmetic would."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_twice = ContextVar("_twice", default=False)


@contextmanager
def input_gradient_differentiable() -> Iterator[None]:
    """Inside, `conv2d` prepares for a penalty on gradients: `torch.autograd.grad(..., create_graph=True)` of what is
    computed here may ask for the gradient towards the input alone, and is differentiated again at full speed. Not under
    autocast, outside which all gradients are penalised."""
    token = _twice.set(True)
    try:
        yield
    finally:
        _twice.reset(token)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int) -> Tensor:
    """`torch.nn.functional.conv2d` with stride 1; see `input_gradient_differentiable`."""
    if not _differentiated_twice(x):
        return F.conv2d(x, weight, bias, padding=padding)
    x = _PenalisedConv2d.apply(x, weight, padding)
    return x if bias is None else x + bias.view(-1, 1, 1)


def upsampled_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest x2 followed by a 3x3 convolution, as one transposed convolution: (B, in, H, W) -> (B, out, 2H, 2W).

    A pixel of the result meets 2x2 pixels of the input, so the nine taps add up to four: 4/9 of the arithmetic.
    """
    taps = _overlapped(weight.transpose(0, 1).flip(2, 3))
    return F.conv_transpose2d(x, taps, bias, stride=2, padding=1)


def downsampled_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution followed by the average of 2x2, as one with stride 2: (B, in, H, W) -> (B, out, H/2, W/2).

    Its 4x4 taps are the average's sum over four shifts: 4/9 of the arithmetic.
    """
    if _differentiated_twice(x):
        return F.avg_pool2d(conv2d(x, weight, bias, padding=1), 2)
    return F.conv2d(x, _overlapped(weight) / 4, bias, stride=2, padding=1)


def _differentiated_twice(x: Tensor) -> bool:
    return _twice.get() and not torch.is_autocast_enabled(x.device.type)


def _overlapped(weight: Tensor) -> Tensor:
    """The sum of a 3x3 kernel's four places in a 4x4 one."""
    taps = F.pad(weight, (1, 1, 1, 1))
    rows = taps[:, :, 1:] + taps[:, :, :-1]
    return rows[..., 1:] + rows[..., :-1]


class _PenalisedConv2d(torch.autograd.Function):
    """The gradient towards the input is written as a transposed convolution. Differentiating that gives a plain weight
    gradient, where torch's double backward convolves with a kernel as large as the image, at a third of the speed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, padding=padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # this is the gradient inside the penalty
            return F.conv_transpose2d(gradient, weight, padding=ctx.padding), None, None
        towards_x, towards_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, [1, 1], [ctx.padding] * 2, [1, 1], False, [0, 0], 1,
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False],
        )  # fmt: skip
        return towards_x, towards_weight, None


class NarrowConv2d(nn.Conv2d):
    """Convolution to a few channels, such as the three of an image, with stride 1 and no padding.

    Vector instructions run over the output channels, and three fill a fifth of a register. So all columns of the kernel
    are made into channels of a convolution with a k x 1 kernel, whose results are then added along the diagonal.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H - k + 1, W - k + 1)."""
        out, size = self.out_channels, self.kernel_size[0]
        columns = self.weight.permute(0, 3, 1, 2).reshape(out * size, self.in_channels, size, 1)
        parts = F.conv2d(input, columns).contiguous()
        batch, _, height, width = parts.shape
        diagonal = parts.as_strided(
            (batch, out, size, height, width - size + 1),
            (out * size * height * width, size * height * width, height * width + 1, width, 1),
        )
        return diagonal.sum(2) + self.bias.view(-1, 1, 1)  # type: ignore[union-attr]
