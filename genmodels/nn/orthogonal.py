"""Regularisation towards orthogonal filters."""

from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonal_penalty(weights: Iterable[Tensor]) -> Tensor:
    """Sum over the weights, as matrices (out, everything else), of |W W^T * (1 - I)|_F^2: filters are pushed to be
    orthogonal to each other, their norms are left alone (Brock et al. 2019, eq. 3). In fp32."""
    total = torch.zeros(())
    for weight in weights:
        matrix = weight.float().flatten(1)
        with torch.autocast(weight.device.type, enabled=False):
            products = matrix @ matrix.t()
        total = total.to(weight.device) + products.square().sum() - products.diagonal().square().sum()
    return total
