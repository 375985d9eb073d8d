"""Counting classes and their divergence: by hand, by scipy, and by what chance makes of them."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor

from genmodels.evaluation.bootstrap import Estimate
from genmodels.evaluation.modes import mixture_of, mixture_scores, mode_scores


def scores(classes: Tensor, frequencies: Tensor, replicates: int = 0) -> dict[str, Estimate]:
    return mode_scores(classes, frequencies, generator=torch.Generator().manual_seed(0), replicates=replicates)


def test_as_many_of_each_class_are_all_modes_and_no_divergence():
    found = scores(torch.arange(30) % 10, torch.full((10,), 7))
    assert found["modes"].value == 10
    assert found["mode_divergence"].value == pytest.approx(0, abs=1e-12)
    assert (found["modes"].better, found["mode_divergence"].better) == ("higher", "lower")
    assert found["modes"].note == "of 10, in 30 samples"


@pytest.mark.parametrize("kept", [1, 3, 8])
def test_some_of_many_equally_frequent_classes(kept: int):
    """KL = sum of 1/k log((1/k) / (1/K)) = log(K / k)."""
    found = scores(torch.arange(24) % kept, torch.ones(1_000))
    assert found["modes"].value == kept
    assert found["mode_divergence"].value == pytest.approx(math.log(1_000 / kept))


def test_the_divergence_is_that_of_scipy_and_its_order_counts():
    generator = np.random.default_rng(0)
    real, made = generator.integers(1, 100, 20), generator.integers(0, 3, 20)
    found = scores(torch.from_numpy(np.repeat(np.arange(20), made)), torch.from_numpy(real))
    assert found["mode_divergence"].value == pytest.approx(entropy(made, real))
    assert found["mode_divergence"].value != pytest.approx(entropy(real, made + 1e-9))
    assert found["modes"].value == (made > 0).sum()


def test_a_class_that_no_real_image_has_is_infinitely_far_and_one_without_both_counts_nothing():
    real = torch.tensor([5, 5, 0])
    assert scores(torch.tensor([0, 1, 2]), real)["mode_divergence"].value == math.inf
    assert scores(torch.tensor([0, 1]), real)["mode_divergence"].value == pytest.approx(0)


def test_real_images_miss_classes_and_diverge_as_chance_has_it():
    """Of 1,000 equally frequent classes 5,000 images lack 1,000 (1 - 1/1,000)^5,000 = 6.7; KL is near 999 / 10,000."""
    found = scores(torch.randint(1_000, (5_000,), generator=torch.Generator().manual_seed(1)), torch.ones(1_000))
    assert found["modes"].value == pytest.approx(1_000 - 6.7, abs=4 * math.sqrt(6.7))
    assert found["mode_divergence"].value == pytest.approx(999 / 10_000, rel=0.1)


def test_the_interval_is_as_wide_as_the_delta_method_has_it():
    """Of two classes, 80 % and 20 % of 1,000 samples where half is right: dKL/dp = log(p / (1 - p)) = log 4, and so
    the standard error is log 4 sqrt(0.8 * 0.2 / 1,000). No resampling loses one of the classes."""
    found = scores((torch.arange(1_000) % 5 == 0).long(), torch.ones(2), replicates=2_000)
    expected = math.log(4) * math.sqrt(0.8 * 0.2 / 1_000)
    assert found["mode_divergence"].standard_error == pytest.approx(expected, rel=0.08)
    assert found["modes"].low == found["modes"].value == found["modes"].high == 2


CENTRES = torch.tensor([[math.cos(math.pi * i / 4), math.sin(math.pi * i / 4)] for i in range(8)])


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of eight Gaussians on a ring, those of odd number twice as wide as the others; and which of them each is of."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(8, (count,), generator=generator)
    widths = 0.01 * (1 + labels % 2)[:, None]
    return CENTRES[labels] + widths * torch.randn(count, 2, generator=generator), labels


def mixture(made: Tensor, replicates: int = 0) -> dict[str, Estimate]:
    known = mixture_of(*points(80_000, seed=0))
    return mixture_scores(made, known, generator=torch.Generator().manual_seed(0), replicates=replicates)


def test_a_mixture_is_known_by_its_labelled_points():
    known = mixture_of(*points(80_000, seed=0))
    torch.testing.assert_close(known.centres.float(), CENTRES, atol=1e-3, rtol=0)
    torch.testing.assert_close(known.deviations.float(), torch.tensor([0.01, 0.02] * 4), atol=0, rtol=0.02)


def test_a_perfect_sampler_finds_all_modes_with_the_quality_of_a_gaussian_in_the_plane():
    """The square of the distance is exponential: within three standard deviations lie 1 - exp(-9 / 2) of all."""
    found = mixture(points(20_000, seed=1)[0], replicates=200)
    share = 1 - math.exp(-4.5)
    error = math.sqrt(share * (1 - share) / 20_000)
    assert found["modes"].value == found["modes"].low == found["modes"].high == 8
    assert found["modes"].note == "of 8, in 20,000 samples"
    assert found["high_quality"].value == pytest.approx(share, abs=4 * error)
    assert found["high_quality"].standard_error == pytest.approx(error, rel=0.25)
    assert found["modes"].better == found["high_quality"].better == "higher"


@pytest.mark.parametrize("kept", [1, 3])
def test_a_mode_is_found_by_samples_that_are_near_enough(kept: int):
    """Half of the samples are on the first centres, half at 3.5 deviations of the next, which counts for nothing."""
    far = CENTRES[4] + torch.tensor([0.035, 0.0])
    found = mixture(torch.cat((CENTRES[:kept].repeat(30 // kept, 1), far.repeat(30, 1))))
    assert found["modes"].value == kept
    assert found["high_quality"].value == 0.5
