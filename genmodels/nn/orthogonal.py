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
        wide = len(matrix) <= matrix.shape[1]
        with torch.autocast(weight.device.type, enabled=False):
            products = matrix @ matrix.t() if wide else matrix.t() @ matrix  # of the same Frobenius norm, and smaller
        norms = products.diagonal() if wide else matrix.square().sum(dim=1)
        total = total.to(weight.device) + products.square().sum() - norms.square().sum()
    return total
