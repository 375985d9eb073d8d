"""Closed forms, scipy's sqrtm, and torch-fidelity on the same features."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from genmodels.evaluation.frechet import feature_distance, fid, frechet_distance


def features(n: int, d: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / d**0.5 + rng.normal(size=d))


@pytest.mark.parametrize(("n", "d"), [(500, 64), (65, 64), (20, 64), (2, 64)])
def test_the_distance_of_a_set_to_itself_is_zero(n, d):
    x = features(n, d)
    assert feature_distance(x, x) == pytest.approx(0, abs=1e-6 * float(x.var(0).sum()))


def test_a_translation_is_at_its_squared_length():
    """Equal covariances leave |m1 - m2|^2, in the path with more images than features and in the one with fewer."""
    for n in (300, 20):
        x = features(n, 32)
        shift = torch.zeros(32, dtype=torch.float64)
        shift[:2] = torch.tensor([3.0, 4.0])
        assert feature_distance(x, x + shift) == pytest.approx(25, rel=1e-6)


def test_scaling_by_c_is_at_c_minus_one_squared_times_the_variance():
    x = features(300, 16) - features(300, 16).mean(0)
    assert feature_distance(x, 3 * x) == pytest.approx(4 * float(x.var(0).sum()), rel=1e-9)


def test_commuting_covariances_have_the_distance_of_their_roots():
    a, b = torch.tensor([1.0, 4, 9, 0]).double(), torch.tensor([4.0, 1, 9, 25]).double()
    zero = torch.zeros(4).double()
    assert frechet_distance(zero, a.diag(), zero, b.diag()) == pytest.approx(1 + 1 + 0 + 25)
    assert frechet_distance(zero, b.diag(), zero, a.diag()) == pytest.approx(27)  # the factored one is singular


@pytest.mark.parametrize(("n", "m", "d"), [(400, 300, 48), (40, 300, 48), (300, 40, 48), (20, 30, 48)])
def test_it_equals_scipys_matrix_square_root_and_torch_fidelity(n, m, d):
    x, y = features(n, d), features(m, d, seed=1)
    covariances = [np.cov(f.numpy(), rowvar=False) for f in (x, y)]
    root = np.real(np.asarray(scipy.linalg.sqrtm(covariances[0] @ covariances[1] + 1e-12 * np.eye(d))))
    expected = (
        float((x.mean(0) - y.mean(0)).square().sum()) + sum(np.trace(c) for c in covariances) - 2 * np.trace(root)
    )
    assert feature_distance(x, y) == pytest.approx(expected, rel=1e-5)
    reference = fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), verbose=False)
    assert feature_distance(x, y) == pytest.approx(reference["frechet_inception_distance"], rel=1e-5)


def test_a_feature_without_variance_is_no_obstacle():
    """A dead unit makes the covariance singular, which Cholesky refuses."""
    x, y = features(300, 16), features(300, 16, seed=1)
    dead = torch.zeros(300, 1, dtype=torch.float64)
    assert feature_distance(torch.cat([x, dead], 1), torch.cat([y, dead], 1)) == pytest.approx(
        feature_distance(x, y), rel=1e-7
    )


def test_pairs_that_all_differ_alike_leave_no_doubt_when_drawn_together():
    """Images and reconstructions one constant vector apart are at its squared length, whichever of them are drawn."""
    real = features(50, 3)
    moved = real + torch.tensor([1.0, -2.0, 0.5])
    together, apart = (
        fid(real, moved, generator=torch.Generator().manual_seed(0), paired=paired) for paired in (True, False)
    )
    assert together.value == apart.value == pytest.approx(5.25, rel=1e-5)
    assert together.replicates.tolist() == pytest.approx([5.25] * len(together.replicates), rel=1e-5)
    assert apart.standard_error > 0.1


def test_the_standard_error_is_the_spread_of_repeated_experiments():
    rng = np.random.default_rng(0)
    draw = lambda mean: torch.from_numpy(rng.normal(mean, 1, size=(300, 8))).float()  # noqa: E731
    scores = [fid(draw(0), draw(0.5), generator=torch.Generator().manual_seed(i)) for i in range(40)]
    spread = np.std([score.value for score in scores], ddof=1)
    assert np.mean([score.standard_error for score in scores]) == pytest.approx(spread, rel=0.4)
