"""Equal and distant sets, torch-fidelity on the same features, a loop over all pairs, expectations in closed form."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from genmodels.evaluation.bootstrap import Estimate
from genmodels.evaluation.manifold import manifold_scores


def normal(n: int, d: int, seed: int, mean: float = 0.0, deviation: float = 1.0) -> torch.Tensor:
    return deviation * torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + mean


def scores(real: torch.Tensor, fake: torch.Tensor, replicates: int = 0, seed: int = 0) -> dict[str, Estimate]:
    return manifold_scores(real, fake, generator=torch.Generator().manual_seed(seed), replicates=replicates)


def values(real: torch.Tensor, fake: torch.Tensor) -> dict[str, float]:
    return {name: score.value for name, score in scores(real, fake).items()}


def test_a_set_covers_itself_and_nothing_that_is_far_away():
    x = normal(100, 8, 0)
    assert values(x, x) == {"precision": 1, "recall": 1, "coverage": 1, "density": pytest.approx(6 / 5)}  # itself, too
    assert values(x, x + 100) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_a_narrow_set_inside_is_precise_and_recalls_little():
    found = values(normal(500, 8, 0), normal(500, 8, 1, deviation=0.2))
    assert found["precision"] == 1
    assert found["recall"] < 0.05
    assert found["density"] > 1.5
    assert found["coverage"] < 0.6


@pytest.mark.parametrize(("n", "m"), [(120, 120), (90, 150)])
def test_precision_and_recall_are_torch_fidelitys(n: int, m: int):
    real, fake = normal(n, 6, 0), normal(m, 6, 1, mean=0.5)
    reference = prc_features_to_metric(
        fake, real, prc_neighborhood=3, prc_batch_size=64, save_cpu_ram=True, verbose=False
    )
    found = values(real, fake)
    assert found["precision"] == pytest.approx(reference["precision"])
    assert found["recall"] == pytest.approx(reference["recall"])


def test_density_and_coverage_by_a_loop_over_all_pairs():
    real, fake = normal(40, 3, 0).double().numpy(), normal(30, 3, 1, mean=0.7).double().numpy()
    radius = [sorted(np.linalg.norm(real - x, axis=1))[5] for x in real]
    inside = np.array([[np.linalg.norm(x - y) <= r for y in fake] for x, r in zip(real, radius, strict=True)])
    found = values(torch.from_numpy(real), torch.from_numpy(fake))
    assert found["density"] == pytest.approx(inside.sum() / (5 * 30))
    assert found["coverage"] == pytest.approx(inside.any(axis=1).mean())


def test_two_samples_of_one_distribution_have_the_published_expectations():
    """Naeem et al., lemma 1 and 2: density 1; coverage 1 - (M - 1) ... (M - k) / (2M - 1) ... (2M - k)."""
    n = 200
    found = [values(normal(n, 4, 2 * i), normal(n, 4, 2 * i + 1)) for i in range(60)]
    missed = np.prod([(n - i) / (2 * n - i) for i in range(1, 6)])
    for name, expected in (("density", 1.0), ("coverage", 1 - missed)):
        drawn = [each[name] for each in found]
        assert abs(np.mean(drawn) - expected) < 3 * np.std(drawn) / 60**0.5


def test_the_standard_errors_are_about_the_spread_of_repeated_experiments():
    repeated = [scores(normal(200, 4, 2 * i), normal(200, 4, 2 * i + 1, mean=0.7), 50, i) for i in range(40)]
    for name in ("precision", "recall", "density", "coverage"):
        spread = np.std([each[name].value for each in repeated], ddof=1)
        assert np.mean([each[name].standard_error for each in repeated]) == pytest.approx(spread, rel=0.5), name


def test_with_fewer_members_than_neighbours_the_balls_reach_the_farthest():
    x = normal(3, 2, 0)
    assert values(x, x) == {"precision": 1, "recall": 1, "coverage": 1, "density": pytest.approx(3 / 2)}
