"""Closed form of the population distance, unbiasedness, and torch-fidelity on the same features."""

import re

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from genmodels.evaluation import kernel
from genmodels.evaluation.kernel import kid, permutation_p_value, polynomial_kernel, prior_mmd


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, d: int, seed: int, mean: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=generator(seed)) + mean


def test_it_is_torch_fidelitys_estimate_on_one_subset_of_everything(monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK_ROWS", 37)  # blocks that do not divide the rows
    x, y = normal(200, 16, 0), normal(200, 16, 1, mean=0.3)
    reference = kid_features_to_metric(
        x.double(), y.double(), kid_subsets=1, kid_subset_size=200, kid_kernel="poly", verbose=False
    )
    assert kid(x, y, generator=generator()).value == pytest.approx(
        reference["kernel_inception_distance_mean"], rel=1e-9
    )


def test_two_points_each_by_hand():
    """D = 1, x in {0, 1}, y in {1, 2}: k(a, b) = (ab + 1)^3, so 1 + 27 - 2 (1 + 1 + 8 + 27) / 4 = 9.5."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert kid(x, y, generator=generator()).value == pytest.approx(9.5)


def test_it_is_unbiased():
    """One distribution: the mean over draws is 0 within its error, and single values fall on both sides."""
    values = [kid(normal(50, 8, 2 * i), normal(50, 8, 2 * i + 1), generator=generator()).value for i in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5
    assert min(values) < 0 < max(values)


def test_the_distance_of_two_means_in_one_dimension():
    """N(0, 1) and N(m, 1): E (xy + 1)^3 by moments, E x = m, E x^2 = m^2 + 1, E x^3 = m^3 + 3m."""
    moments = lambda m: np.array([1, m, m**2 + 1, m**3 + 3 * m])  # noqa: E731
    difference = moments(0.0) - moments(0.5)
    expected = (np.array([1, 3, 3, 1]) * difference**2).sum()
    estimate = kid(normal(1000, 1, 0), normal(1000, 1, 1, mean=0.5), generator=generator())
    assert abs(estimate.value - expected) < 4 * estimate.standard_error


def test_the_standard_error_is_the_spread_of_repeated_experiments():
    scores = [kid(normal(200, 8, 2 * i), normal(200, 8, 2 * i + 1, 0.5), generator=generator(i)) for i in range(40)]
    spread = np.std([score.value for score in scores], ddof=1)
    assert np.mean([score.standard_error for score in scores]) == pytest.approx(spread, rel=0.4)


def test_the_discrepancy_of_two_gaussians_is_its_closed_form():
    """E exp(-d^2 / 2 w^2) = w / sqrt(w^2 + 2) exp(-m^2 / 2 (w^2 + 2)) for the difference d ~ N(m, 2) of two draws."""
    prior, codes = normal(1000, 1, 0), normal(1000, 1, 1, mean=1.0)
    width = float(torch.pdist(prior[: kernel.BLOCK_ROWS]).median())
    expected = 2 * width / (width**2 + 2) ** 0.5 * (1 - np.exp(-1 / (2 * (width**2 + 2))))
    estimate = prior_mmd(prior, codes, generator=generator())
    assert estimate.low < expected < estimate.high
    same = prior_mmd(prior, normal(1000, 1, 2), generator=generator())
    assert same.low < 0 < same.high


def test_all_deals_of_four_rows_by_hand():
    """{0, 1} and {10, 11} are dealt in 3 ways, as likely each, of which theirs alone is as far apart: p is 1/3."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[10.0], [11.0]])
    near = lambda x, y: torch.exp(-torch.cdist(x, y))  # noqa: E731
    p = permutation_p_value(x, y, near, generator=generator(), permutations=5000)
    assert p == pytest.approx(1 / 3, abs=4 * (2 / 9 / 5000) ** 0.5)


def test_the_p_value_does_not_depend_on_the_size_of_blocks(monkeypatch):
    x, y = normal(50, 3, 0), normal(70, 3, 1, mean=0.2)
    whole = permutation_p_value(x, y, polynomial_kernel, generator=generator())
    assert 0.01 < whole < 0.99
    monkeypatch.setattr(kernel, "BLOCK_ROWS", 37)
    assert permutation_p_value(x, y, polynomial_kernel, generator=generator()) == pytest.approx(whole, abs=1e-9)


def p_of(prior: torch.Tensor, codes: torch.Tensor, seed: int) -> float:
    note = prior_mmd(prior, codes, generator=generator(seed), replicates=2).note
    found = re.fullmatch(r"p = (\S+) if codes follow the prior", note)
    assert found
    return float(found[1])


def test_codes_that_follow_the_prior_are_rejected_as_often_as_the_level_says():
    """At 5 % of 200 draws 10 in the mean, with a deviation of 3.1; p is uniform, with a deviation of 0.29."""
    values = np.array([p_of(normal(30, 2, 2 * i), normal(40, 2, 2 * i + 1), i) for i in range(200)])
    assert 2 <= (values <= 0.05).sum() <= 20
    assert abs(values.mean() - 0.5) < 3.5 * 0.29 / 200**0.5
    assert values.std() == pytest.approx(0.29, abs=0.04)


def test_codes_beside_the_prior_have_the_smallest_p_value_there_is():
    assert p_of(normal(200, 2, 0), normal(200, 2, 1, mean=1.0), 0) == pytest.approx(1 / 501, rel=0.05)
    assert prior_mmd(normal(9, 2, 0), normal(9, 2, 1), generator=generator(), replicates=0).note == ""
