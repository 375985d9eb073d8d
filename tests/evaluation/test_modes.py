"""Counting classes and their divergence: by hand, by scipy, and by what chance makes of them."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor

from genmodels.evaluation.bootstrap import Estimate
from genmodels.evaluation.modes import mode_scores


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
