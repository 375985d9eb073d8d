"""Probes against scikit-learn's, similarities of known value."""

import itertools
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


def test_active_units_are_those_that_vary_by_more_than_a_hundredth_of_the_prior():
    """Deviations of the codes 1, 0.15, 0.05 and 0 where the prior's are 1, 1, 1 and 1; then all ten times as wide."""
    generator = torch.Generator().manual_seed(0)
    prior, codes = torch.randn(2, 2000, 4, generator=generator)
    codes = codes * torch.tensor([1.0, 0.15, 0.05, 0.0]) + 3
    for width in (1, 10):
        found = representation.active_units(width * codes, width * prior, generator=generator, replicates=20)
        assert found.value == found.low == found.high == 2
        assert found.note == "of 4"


def test_an_active_unit_at_the_limit_is_doubtful():
    codes = 0.1 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    prior = torch.randn(5000, 1, generator=torch.Generator().manual_seed(1))
    found = representation.active_units(codes, prior, generator=torch.Generator().manual_seed(2), replicates=50)
    assert 0.1 < found.replicates.mean() < 0.9


def test_clusters_are_matched_to_classes_as_by_trying_all():
    generator = torch.Generator().manual_seed(0)
    clusters, labels = torch.randint(4, (2, 60), generator=generator)
    best = max((torch.tensor(p)[clusters] == labels).sum() for p in itertools.permutations(range(4)))
    assert representation.matched(clusters, labels).sum() == best
    renamed = (labels + 1) % 4
    assert representation.matched(renamed, labels).all()


def test_with_more_clusters_than_classes_some_stand_for_none_and_with_fewer_some_classes_are_missed():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert representation.matched(torch.tensor([2, 2, 0, 1, 1, 1]), labels).tolist() == [True, True, False, *[True] * 3]
    assert representation.matched(torch.zeros(6).long(), labels).sum() == 3


@pytest.mark.parametrize("clusters", [1, 2, 3, 5])
def test_the_best_accuracy_of_clusters_is_that_of_the_classes_with_the_rarest_merged_or_not(clusters: int):
    labels = torch.tensor([0] * 5 + [1] * 2 + [2] * 3)
    best = representation.best_cluster_accuracy(labels, clusters)
    assert best == pytest.approx({1: 0.5, 2: 0.8}.get(clusters, 1.0))
    most_frequent_first = torch.tensor([0, 2, 1])[labels]
    found = representation.matched(most_frequent_first.clamp(max=clusters - 1), labels)
    assert found.double().mean() == pytest.approx(best)


def test_pixels_of_distant_classes_are_clustered_without_a_mistake():
    labels = torch.arange(3).repeat(20)
    noise = torch.randint(0, 40, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = noise + (80 * labels).byte().view(-1, 1, 1, 1)
    found = representation.pixel_clusters(images[:30], images[30:], 3)
    assert representation.matched(found, labels[30:]).all()


def test_pixels_as_codes_are_at_most_32x32():
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    codes = representation.pixel_codes(images)
    assert codes.shape == (2, 3 * 32 * 32)
    assert codes[0, 0].item() == pytest.approx(images[0, 0, :2, :2].float().mean().item() / 127.5 - 1, abs=1e-5)
