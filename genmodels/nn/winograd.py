"""3x3 convolutions by Winograd's minimal filtering, F(4x4, 3x3): sixteen outputs take 36 multiplications in place of
144 (Lavin & Gray, *Fast Algorithms for Convolutional Neural Networks*, CVPR 2016, section 4).

cuDNN chooses such algorithms by itself; what torch calls on a CPU does not. There a convolution of many channels is
bound by arithmetic, and this one takes half the time, forward and backward, at 256 channels of 32x32. It keeps nine
quarters of the input for the backward pass, and rounds more coarsely: 2e-6 of the result in fp32, not 2e-7 to 9e-7.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OUTPUTS, KERNEL = 4, 3
TILE = OUTPUTS + KERNEL - 1
POINTS = torch.tensor([0, 1, -1, 1 / 2, -2], dtype=torch.float64)
"""Where polynomials are evaluated, beside infinity (Barabasz et al., *Error Analysis and Improving the Accuracy of
Winograd Convolution for Deep Neural Networks*, ACM TOMS 2020): two thirds of the rounding of 0, ±1 and ±2."""


class ReflectingConv2d(nn.Conv2d):
    """A 3x3 convolution of images that are continued by reflection: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=KERNEL, padding=1, padding_mode="reflect")

    def forward(self, input: Tensor) -> Tensor:
        by_tiles = input.shape[2] % OUTPUTS == 0 and input.shape[3] % OUTPUTS == 0
        plain = torch.is_autocast_enabled(input.device.type) or torch.compiler.is_compiling()
        if input.device.type != "cpu" or plain or not by_tiles:
            return super().forward(input)
        return winograd_conv2d(F.pad(input, (1, 1, 1, 1), mode="reflect"), self.weight, self.bias)


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.conv2d` with a 3x3 kernel, stride 1 and no padding, differentiable any number of times:
    (B, in, H, W) -> (B, out, H - 2, W - 2), both multiples of 4."""
    outputs, inputs = weight.shape[:2]
    tiles = _Linear.apply(x.permute(0, 2, 3, 1), _tiles, _overlap_add)
    images, rows, columns = tiles.shape[2:5]
    kernels = KERNELS_AT_POINTS.to(weight) @ weight.permute(2, 3, 1, 0).reshape(KERNEL**2, -1)
    at_points = TILES_AT_POINTS.to(x) @ tiles.view(TILE**2, -1)
    products = torch.bmm(at_points.view(TILE**2, -1, inputs), kernels.view(TILE**2, inputs, outputs))
    pixels = PIXELS_FROM_POINTS.to(x) @ products.view(TILE**2, -1)
    y = pixels.view(OUTPUTS, OUTPUTS, images, rows, columns, outputs).permute(2, 3, 0, 4, 1, 5)
    y = y.reshape(images, OUTPUTS * rows, OUTPUTS * columns, outputs)
    return (y if bias is None else y + bias).permute(0, 3, 1, 2)


def _at_points(coefficients: int) -> Tensor:
    """The matrix that evaluates a polynomial of so many coefficients at each of POINTS and at infinity."""
    infinity = torch.eye(coefficients, dtype=torch.float64)[-1:]
    return torch.cat((torch.vander(POINTS, coefficients, increasing=True), infinity))


def _of_both_dimensions(matrix: Tensor) -> Tensor:
    matrix = matrix.contiguous()
    return torch.kron(matrix, matrix)


KERNELS_AT_POINTS = _of_both_dimensions(_at_points(KERNEL))
TILES_AT_POINTS = _of_both_dimensions(torch.linalg.inv(_at_points(TILE)).T)
PIXELS_FROM_POINTS = _of_both_dimensions(_at_points(OUTPUTS).T)
"""A correlation of a tile with a kernel is the transpose of multiplying polynomials: evaluate both, multiply point by
point, interpolate."""


class _Linear(torch.autograd.Function):
    """A linear map, whose gradient is its transpose, whose gradient is the map."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.maps = back, there
        return there(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return _Linear.apply(gradient, *ctx.maps), None, None


def _tiles(x: Tensor) -> Tensor:
    """The 6x6 tiles, each four pixels from the last: (B, 4h + 2, 4w + 2, C) -> (6, 6, B, h, w, C)."""
    return x.unfold(1, TILE, OUTPUTS).unfold(2, TILE, OUTPUTS).permute(4, 5, 0, 1, 2, 3).contiguous()


def _overlap_add(tiles: Tensor) -> Tensor:
    """The transpose of `_tiles`: (6, 6, B, h, w, C) -> (B, 4h + 2, 4w + 2, C)."""
    for _ in ("rows", "columns"):  # (6, x, y, n, ...) -> (x, y, 4n + 2, ...)
        n = tiles.shape[3]
        added = tiles.new_empty(*tiles.shape[1:3], n + 1, OUTPUTS, *tiles.shape[4:])
        added[:, :, :n] = tiles[:OUTPUTS].movedim(0, 3)
        added[:, :, n] = 0
        added[:, :, 1:, : TILE - OUTPUTS] += tiles[OUTPUTS:].movedim(0, 3)
        tiles = added.flatten(2, 3)[:, :, : OUTPUTS * n + TILE - OUTPUTS]
    return tiles
