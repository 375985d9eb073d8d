"""Self-attention over the pixels of a feature map."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.nn.spectral_norm import SpectralConv2d


class SelfAttention(nn.Module):
    """x + gamma * attention (Zhang et al. 2019, section 3), with a learned scalar gamma that starts at 0, so that the
    block starts as the identity.

    Queries and keys have C/8 channels, values C/2; keys and values are pooled 2x2, as in the authors' code, which
    makes the map of attention four times smaller.

    Args:
        channels: C.
        pool: whether keys and values are pooled.
    """

    def __init__(self, channels: int, *, pool: bool = True):
        super().__init__()
        narrow, half = max(1, channels // 8), max(1, channels // 2)
        self.query = SpectralConv2d(channels, narrow, 1, bias=False)
        self.key = SpectralConv2d(channels, narrow, 1, bias=False)
        self.value = SpectralConv2d(channels, half, 1, bias=False)
        self.output = SpectralConv2d(half, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.pool:
            key, value = F.max_pool2d(key, 2), F.max_pool2d(value, 2)
        weights = attention(query.flatten(2), key.flatten(2))
        attended = torch.bmm(value.flatten(2), weights.transpose(1, 2))
        return x + self.gamma * self.output(attended.unflatten(2, x.shape[2:]))


def attention(query: Tensor, key: Tensor) -> Tensor:
    """How much each of N places looks at each of M: (B, C, N) and (B, C, M) -> (B, N, M), whose rows sum to 1.

    The products are not scaled by the root of C (eq. 1). Written out, because torch's fused attention cannot be
    differentiated twice. The softmax is in fp32 or better.
    """
    products = torch.bmm(query.transpose(1, 2), key)
    return products.softmax(dim=2, dtype=torch.promote_types(products.dtype, torch.float32))


class CausalSelfAttention(nn.Module):
    """x + what a pixel finds at itself and at those before it in raster order (Chen et al. 2018, PixelSNAIL).

    Args:
        channels: C, a multiple of `heads`.
        heads: which attend apart, each with C/heads channels of queries, keys and values.
        pixels: N, of the whole image.
    """

    def __init__(self, channels: int, heads: int, pixels: int):
        super().__init__()
        self.heads, self.memory = heads, (2 * channels, pixels)
        self.position = nn.Parameter(0.02 * torch.randn(channels, pixels))
        self.project = nn.Conv1d(channels, 3 * channels, kernel_size=1)
        self.output = nn.Conv1d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        query, key, value = map(self._apart, self.project(x.flatten(2) + self.position).chunk(3, dim=1))
        return x + self._together(F.scaled_dot_product_attention(query, key, value, is_causal=True)).view_as(x)

    def step(self, x: Tensor, place: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The pixel (B, C, 1, 1) at the place (1,), and keys and values of those before it, (B, 2C, N) -> what becomes
        of the pixel, and the memory with it."""
        projected = self.project(x.flatten(2) + self.position.index_select(1, place))
        query, here = projected.tensor_split([x.shape[1]], dim=1)
        memory = memory.index_copy(2, place, here)
        query, key, value = map(self._apart, (query, *memory.chunk(2, dim=1)))
        known = torch.arange(memory.shape[2], device=place.device) <= place
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=known[None])
        return x + self._together(found).view_as(x), memory

    def _apart(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, heads, N, C / heads)."""
        return x.unflatten(1, (self.heads, -1)).transpose(2, 3)

    def _together(self, x: Tensor) -> Tensor:
        """(B, heads, N, C / heads) -> what is added, (B, C, N)."""
        return self.output(x.transpose(2, 3).flatten(1, 2))
