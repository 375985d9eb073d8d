"""Multi-scale structural similarity (Wang, Simoncelli & Bovik 2003).

As in the scripts of Karras et al. 2018 the window shrinks with an image smaller than 11 pixels: one of 8 pixels is
compared as a whole.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, finest first; Wang et al., section 3.2
COARSEST = 8


def scales(resolution: int) -> int:
    """How many scales the images have: the paper's five, or as many as leave at least 8 pixels at the coarsest."""
    count = 1
    while count < len(WEIGHTS) and resolution % 2**count == 0 and resolution // 2**count >= COARSEST:
        count += 1
    return count


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """The similarity of each pair, (N,); 1 for equal images. `x`, `y`: (N, C, R, R), float in 0..255.

    With fewer than five scales the first weights are used, scaled to add up to 1.
    """
    weights = torch.tensor(WEIGHTS[: scales(x.shape[-1])], device=x.device)
    if len(weights) < len(WEIGHTS):
        weights = weights / weights.sum()
    similarity = torch.ones(len(x), device=x.device)
    for scale, weight in enumerate(weights):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        luminance_contrast, contrast = _similarity(x, y)
        term = luminance_contrast if scale == len(weights) - 1 else contrast
        similarity *= term.clamp_min(0) ** weight  # negative similarity has no real power
    return similarity


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance x contrast x structure, and contrast x structure alone, (N,) each (Wang et al., eq. 6 and 7)."""
    n = len(x)
    moments = _windowed(torch.cat([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, square_x, square_y, product = moments.split(n)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance = product - mean_x * mean_y
    variances = square_x - mean_x**2 + square_y - mean_y**2
    contrast = (2 * covariance + c2) / (variances + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * contrast).mean(dim=(1, 2, 3)), contrast.mean(dim=(1, 2, 3))


def _windowed(images: Tensor) -> Tensor:
    """The mean under a Gaussian window of 11 pixels and sigma 1.5, wherever it lies wholly in the image."""
    n, channels, height, width = images.shape
    size = min(11, height, width)
    offsets = torch.arange(size, device=images.device) - (size - 1) / 2
    window = torch.softmax(-(offsets**2) / (2 * (1.5 * size / 11) ** 2), dim=0)
    planes = images.reshape(n * channels, 1, height, width)
    windowed = F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return windowed.view(n, channels, *windowed.shape[2:])
