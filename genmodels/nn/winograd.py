"""3x3 convolutions by Winograd's minimal filtering, F(2x2, 3x3): four outputs take 16 multiplications in place of 36
(Lavin & Gray, *Fast Algorithms for Convolutional Neural Networks*, CVPR 2016, section 4).

cuDNN chooses such algorithms by itself; what torch calls on a CPU does not. There a convolution of many channels is
bound by arithmetic, and this one takes two thirds of the time, forward and backward, at 256 channels. It keeps four
times the input for the backward pass.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
KERNELS = torch.kron(KERNEL, KERNEL)  # (16, 9)


class ReflectingConv2d(nn.Conv2d):
    """A 3x3 convolution of images that are continued by reflection: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, padding_mode="reflect")

    def forward(self, input: Tensor) -> Tensor:
        by_tiles = input.shape[2] % 2 == 0 and input.shape[3] % 2 == 0
        plain = torch.is_autocast_enabled(input.device.type) or torch.compiler.is_compiling()
        if input.device.type != "cpu" or plain or not by_tiles:
            return super().forward(input)
        return winograd_conv2d(F.pad(input, (1, 1, 1, 1), mode="reflect"), self.weight, self.bias)


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.conv2d` with a 3x3 kernel, stride 1 and no padding, differentiable any number of times:
    (B, in, H, W) -> (B, out, H - 2, W - 2), both even."""
    outputs, inputs = weight.shape[:2]
    kernels = KERNELS.to(weight) @ weight.permute(3, 2, 1, 0).reshape(9, inputs * outputs)
    tiles = _Linear.apply(x.permute(0, 2, 3, 1), _tiles, _tiles_transposed)
    products = torch.bmm(tiles.flatten(2, 4).flatten(0, 1), kernels.view(16, inputs, outputs))
    y = _Linear.apply(products.view(*tiles.shape[:-1], outputs), _pixels, _pixels_transposed)
    return (y if bias is None else y + bias).permute(0, 3, 1, 2)


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
    """B^T d B of the 4x4 tiles d, each two pixels from the last: (B, H, W, C) -> (4, 4, B, H/2 - 1, W/2 - 1, C)."""
    return _tile(_tile(x, 1), 3)


def _tiles_transposed(tiles: Tensor) -> Tensor:
    return _tile_transposed(_tile_transposed(tiles, 3), 1)


def _pixels(products: Tensor) -> Tensor:
    """A^T m A of the products m of each tile: (4, 4, B, h, w, C) -> (B, 2h, 2w, C)."""
    return _pixel(_pixel(products, 3), 1)


def _pixels_transposed(y: Tensor) -> Tensor:
    return _pixel_transposed(_pixel_transposed(y, 1), 3)


def _tile(x: Tensor, dim: int) -> Tensor:
    """B^T along one dimension: (..., 2n + 2, ...) -> (4, ..., n, ...)."""
    even, odd = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
    n = even.shape[dim] - 1
    (first, third), (second, fourth) = ((pixels.narrow(dim, 0, n), pixels.narrow(dim, 1, n)) for pixels in (even, odd))
    tiles = x.new_empty(4, *first.shape)
    torch.sub(first, third, out=tiles[0])
    torch.add(second, third, out=tiles[1])
    torch.sub(third, second, out=tiles[2])
    torch.sub(second, fourth, out=tiles[3])
    return tiles


def _tile_transposed(tiles: Tensor, dim: int) -> Tensor:
    """`dim` is that of n in a tile."""
    a, b, c, d = tiles.unbind()
    n = a.shape[dim]
    x = tiles.new_zeros(*a.shape[:dim], n + 1, 2, *a.shape[dim + 1 :])
    even, odd = x.unbind(dim + 1)
    even.narrow(dim, 0, n).add_(a)
    odd.narrow(dim, 0, n).add_(b - c).add_(d)
    even.narrow(dim, 1, n).add_(b + c).sub_(a)
    odd.narrow(dim, 1, n).sub_(d)
    return x.flatten(dim, dim + 1)


def _pixel(products: Tensor, dim: int) -> Tensor:
    """A^T along one dimension: (4, ..., n, ...) -> (..., 2n, ...)."""
    a, b, c, d = products.unbind()
    y = a.new_empty(*a.shape[: dim + 1], 2, *a.shape[dim + 1 :])
    even, odd = y.unbind(dim + 1)
    torch.add(a, b, out=even).add_(c)
    torch.sub(b, c, out=odd).sub_(d)
    return y.flatten(dim, dim + 1)


def _pixel_transposed(y: Tensor, dim: int) -> Tensor:
    even, odd = y.unflatten(dim, (-1, 2)).unbind(dim + 1)
    products = y.new_empty(4, *even.shape)
    products[0] = even
    torch.add(even, odd, out=products[1])
    torch.sub(even, odd, out=products[2])
    torch.neg(odd, out=products[3])
    return products
