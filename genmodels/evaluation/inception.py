"""The Inception network of published FIDs: TensorFlow's graph of 2015-12-05, its weights as torch-fidelity has them.

It differs from torchvision's Inception v3 in the pools, which leave padding out of averages, in one maximum where the
other has a mean, in 1008 outputs, and in a resize that aligns corners. Features are those before the last layer.
"""

import io
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from genmodels.evaluation.images import as_pixels

INPUT_PIXELS = 299
BATCH_IMAGES = 32


class Inception(nn.Module):
    """Features (N, 2048) of (N, 3, H, W) images, uint8 or float in [-1, 1].

    Args:
        weights: content of torch-fidelity's file, read without unpickling anything but tensors.
    """

    def __init__(self, weights: bytes):
        super().__init__()
        blocks = [BasicConv2d, _InceptionA, InceptionB, _InceptionC, InceptionD, _InceptionE, InceptionAux]
        with torch.device("meta"):
            self.network = Inception3(num_classes=1008, aux_logits=False, init_weights=False, inception_blocks=blocks)  # type: ignore[arg-type]
        self.network.Mixed_7c.pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)  # type: ignore[assignment]
        state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
        self.network.load_state_dict(state, assign=True)
        self.network.fc = nn.Identity()  # type: ignore[assignment]
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """The features, 32 images at a time."""
        return torch.cat([self.network(_prepared(batch)) for batch in images.split(BATCH_IMAGES)])


class _MeanOfPixels:
    """A block whose pooling branch averages over the pixels under its window and not over the padding."""

    branch_pool: nn.Module
    pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)

    def _forward(self, x: Tensor) -> list[Tensor]:
        *branches, _ = super()._forward(x)  # type: ignore[misc]
        return [*branches, self.branch_pool(self.pool(x))]


class _InceptionA(_MeanOfPixels, InceptionA): ...


class _InceptionC(_MeanOfPixels, InceptionC): ...


class _InceptionE(_MeanOfPixels, InceptionE): ...


def _prepared(images: Tensor) -> Tensor:
    """299x299 in [-1, 1) as TensorFlow 1 resizes: pixel i is read at i * size / 299, between its neighbours."""
    rows, columns = (_resize_matrix(size).to(images.device) for size in images.shape[-2:])
    return (rows @ as_pixels(images) @ columns.T - 128) / 128


def _resize_matrix(size: int) -> Tensor:
    """(299, size), the linear interpolation along one axis."""
    position = torch.arange(INPUT_PIXELS, dtype=torch.float64) * size / INPUT_PIXELS
    left = position.floor().long()
    weight = (position - left)[:, None]
    right = (left + 1).clamp_max(size - 1)
    return ((1 - weight) * F.one_hot(left, size) + weight * F.one_hot(right, size)).float()
