"""Known answers, torchmetrics' single-scale maps, and the definition written with scipy's convolution."""

import numpy as np
import pytest
import scipy.signal
import torch
from torch.nn import functional as F
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from genmodels.nn.structural_similarity import WEIGHTS, _similarity, ms_ssim, scales


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(resolution: int, channels: int = 3, n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers, as the pixels of pictures are."""
    x, noise = (torch.rand(n, channels, resolution, resolution, generator=generator(seed)) for seed in range(2))
    return (255 * x).floor(), (255 * (0.7 * x + 0.3 * noise)).floor()


@pytest.mark.parametrize(("resolution", "count"), [(4, 1), (8, 1), (28, 2), (32, 3), (64, 4), (128, 5), (1024, 5)])
def test_small_images_have_fewer_scales(resolution, count):
    assert scales(resolution) == count


def blurred(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    return np.stack([scipy.signal.convolve2d(channel, window, mode="valid") for channel in image])


def by_definition(x: np.ndarray, y: np.ndarray, count: int) -> float:
    """Wang et al. 2003 for one pair (C, R, R) in 0..255, with the window of Karras et al.'s scripts."""
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:count]
    weights = weights / weights.sum() if count < 5 else weights
    terms = []
    for _ in range(count):
        size = min(11, x.shape[-1])
        t = np.arange(size) - (size - 1) / 2
        window = np.exp(-np.add.outer(t**2, t**2) / (2 * (1.5 * size / 11) ** 2))
        window /= window.sum()
        mx, my = blurred(x, window), blurred(y, window)
        vx, vy = blurred(x * x, window) - mx**2, blurred(y * y, window) - my**2
        cs = (2 * (blurred(x * y, window) - mx * my) + 58.5225) / (vx + vy + 58.5225)
        terms.append((cs.mean(), ((2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025) * cs).mean()))
        x, y = (a.reshape(len(a), a.shape[1] // 2, 2, a.shape[2] // 2, 2).mean((2, 4)) for a in (x, y))
    return np.prod([cs for cs, _ in terms[:-1]] ** weights[:-1]) * terms[-1][1] ** weights[-1]


@pytest.mark.parametrize("resolution", [8, 64, 128])
def test_it_is_the_papers_formula(resolution):
    x, y = pair(resolution)
    expected = [
        by_definition(a.double().numpy(), b.double().numpy(), scales(resolution)) for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(ms_ssim(x, y).numpy(), expected, rtol=2e-4)


def test_one_scale_is_torchmetrics_ssim_away_from_its_padding():
    x, y = pair(24, channels=1)  # 24 -> 12 leaves two scales; compare the scale itself
    ours, _ = _similarity(x, y)
    _, full = structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)
    torch.testing.assert_close(ours, full[:, :, 5:-5, 5:-5].mean(dim=(1, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("resolution", "count"), [(192, 5), (104, 4), (44, 3)])
def test_it_is_torchmetrics_but_for_the_border_of_the_coarsest_scale(resolution: int, count: int):
    """There torchmetrics also takes windows that reach over the edge, filled up with the image's reflection; of the
    other scales it takes, as we do, those that lie within. So its terms are held against ours with the last one cut out
    of its map, where it has nothing of the reflection."""
    x, y = pair(resolution, n=4)
    assert scales(resolution) == count
    whole = 1 if count == 5 else sum(WEIGHTS[:count])
    weights = [weight / whole for weight in WEIGHTS[:count]]
    finer = multiscale_structural_similarity_index_measure(
        x, y, data_range=255.0, betas=(*weights[:-1], 0.0), reduction="none"
    )
    coarsest = (F.avg_pool2d(images, 2 ** (count - 1)) for images in (x, y))
    _, full = structural_similarity_index_measure(*coarsest, data_range=255.0, return_full_image=True)
    last = torch.as_tensor(full)[..., 5:-5, 5:-5].mean(dim=(1, 2, 3)).clamp_min(0) ** weights[-1]
    torch.testing.assert_close(ms_ssim(x, y), torch.as_tensor(finer) * last, rtol=1e-4, atol=1e-5)


def test_it_is_torchmetrics_where_the_coarsest_scale_is_even():
    """Checkerboards of all smaller sizes about one grey: they average out, and what an edge reflects is that grey."""
    flat = torch.tensor([90.0, 160.0]).view(2, 1, 1, 1).expand(2, 1, 192, 192)
    pair_of_images = []
    for seed in range(2):
        images = flat * (1 + 0.1 * seed)
        for scale in range(4):
            strength = 12 * torch.rand(2, 1, 96 // 2**scale, 96 // 2**scale, generator=generator(seed))
            board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(strength.shape[-1], strength.shape[-1])
            texture = board * F.interpolate(strength, scale_factor=2)
            images = images + F.interpolate(texture, scale_factor=2**scale)
        pair_of_images.append(images)
    x, y = pair_of_images
    expected = multiscale_structural_similarity_index_measure(x, y, data_range=255.0, reduction="none")
    assert (torch.as_tensor(expected) < 0.9).all()
    torch.testing.assert_close(ms_ssim(x, y), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("resolution", [8, 128])
def test_an_image_is_wholly_similar_to_itself(resolution):
    x, _ = pair(resolution)
    torch.testing.assert_close(ms_ssim(x, x), torch.ones(3), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("resolution", "weight"), [(128, 0.1333), (1, 1.0)])
def test_two_constant_images_differ_by_luminance_alone(resolution, weight):
    """Contrast and structure are 1, so (2ab + C1) / (a^2 + b^2 + C1) to the power of the last weight is left."""
    x, y = torch.full((1, 1, resolution, resolution), 200.0), torch.full((1, 1, resolution, resolution), 100.0)
    expected = ((2 * 200 * 100 + 6.5025) / (200**2 + 100**2 + 6.5025)) ** weight
    assert ms_ssim(x, y).item() == pytest.approx(expected, rel=1e-3)
