"""Probes against scikit-learn's, similarities of known value."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from genmodels.evaluation import representation


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of which some dimensions are constant, and labels."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float(), torch.from_numpy(labels).long()


def test_the_linear_probe_is_scikit_learns_logistic_regression(digits):
    codes, labels = digits
    train, test = slice(0, 600), slice(600, 1200)
    scaler = StandardScaler().fit(codes[train])
    reference = LogisticRegression(C=1.0, max_iter=2000, tol=1e-8).fit(scaler.transform(codes[train]), labels[train])
    expected = reference.predict(scaler.transform(codes[test]))
    ours = representation.linear_probe(codes[train], labels[train], codes[test])
    assert (ours.numpy() == expected).mean() > 0.995  # they stop at slightly different places
    assert (ours == labels[test]).float().mean() > 0.85


def test_nearest_neighbours_are_scikit_learns(digits):
    codes, labels = digits
    codes = codes + torch.rand(codes.shape, generator=torch.Generator().manual_seed(0))  # no equal distances
    reference = KNeighborsClassifier(representation.NEIGHBOURS).fit(codes[:600], labels[:600])
    ours = representation.nearest_neighbours(codes[:600], labels[:600], codes[600:])
    assert np.array_equal(ours.numpy(), reference.predict(codes[600:]))


def test_psnr_of_one_level_is_48_13_db_and_of_equal_images_bounded():
    images = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    off = torch.stack((images[0] + 1, images[1]))
    values = representation.psnr(images, off)
    assert values[0].item() == pytest.approx(20 * math.log10(255), abs=1e-3)
    assert values[1].item() == pytest.approx(10 * math.log10(12 * 255**2), abs=0.1)


@pytest.mark.parametrize("resolution", [4, 8, 32])
def test_ssim_is_one_for_equal_images_and_falls_with_noise(resolution: int):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1100, 1, resolution, resolution), dtype=torch.uint8, generator=generator)
    assert representation.ssim(images, images).tolist() == pytest.approx([1.0] * 1100)
    mixed = (images // 2 + images.flip(0) // 2)[:1]
    assert 0 < representation.ssim(images[:1], mixed).item() < 0.95


def test_pixels_as_codes_are_at_most_32x32():
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    codes = representation.pixel_codes(images)
    assert codes.shape == (2, 3 * 32 * 32)
    assert codes[0, 0].item() == pytest.approx(images[0, 0, :2, :2].float().mean().item() / 127.5 - 1, abs=1e-5)
