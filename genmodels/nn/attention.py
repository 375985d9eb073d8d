"""Self-attention over the pixels of a feature map (Zhang et al. 2019, section 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.nn.spectral_norm import SpectralConv2d


class SelfAttention(nn.Module):
    """x + gamma * attention, with a learned scalar gamma that starts at 0, so that the block starts as the identity.

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
