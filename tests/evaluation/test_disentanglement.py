"""Codes that are the factors, that are rotated factors, and that know nothing; scikit-learn's mutual information."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, mutual_info_score
from sklearn.neighbors import NearestCentroid

from genmodels.evaluation import disentanglement
from genmodels.evaluation.disentanglement import (
    Coded,
    completeness_of,
    disentanglement_of,
    mutual_information,
    mutual_information_gap,
    separated_attribute_predictability,
)

SIZES = {"shape": 3, "scale": 6, "x": 8, "colour": 1}
N = 1500


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disentanglement, "TREES", 10)


def drawn(seed: int, n: int = N) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randint(size, (n,), generator=generator) for name, size in SIZES.items()}


def coded(code: str, seed: int) -> Coded:
    """Codes of three dimensions: the factors, all turned against one another, or noise."""
    factors = drawn(seed)
    noise = torch.randn(N, 3, generator=torch.Generator().manual_seed(seed + 100))
    apart = torch.stack([factors[name] / (SIZES[name] - 1) for name in ("shape", "scale", "x")], dim=1)
    turned = apart - 2 / 3 * apart.sum(dim=1, keepdim=True)  # a reflection in the diagonal plane
    return Coded({"apart": apart + 1e-3 * noise, "turned": turned, "noise": noise}[code].float(), factors)


def scores(code: str) -> dict[str, float]:
    estimates = disentanglement.disentanglement(
        coded(code, 0),
        coded(code, 1),
        unordered="shape",
        generator=torch.Generator().manual_seed(0),
        replicates=10,
    )
    for name, estimate in estimates.items():
        assert estimate.better == "higher"
        assert estimate.low <= estimate.value <= estimate.high, name
        assert len(estimate.replicates) == 10
    return {name: estimate.value for name, estimate in estimates.items()}


def test_a_code_that_is_the_factors_has_the_highest_scores():
    """The gap of SAP is that of the shape, 1 - 1/3, and of the others, 1 - 0."""
    found = scores("apart")
    assert found["mig"] == pytest.approx(1, abs=0.03)
    assert found["sap"] == pytest.approx((2 / 3 + 1 + 1) / 3, abs=0.03)
    for name in ("factor_vae_score", "dci_disentanglement", "dci_completeness", "dci_informativeness"):
        assert found[name] == pytest.approx(1, abs=0.02), name


def test_the_factors_themselves_are_a_perfect_code_of_which_20_bins_see_20_values():
    """40 equally frequent values fall into 20 bins by twos: ln 20 of ln 40 nats are found."""
    code = disentanglement.perfect(
        {"orientation": torch.arange(40).repeat(5), "x": torch.arange(5).repeat_interleave(40)}
    )
    ones = torch.ones(1, 200, dtype=torch.float64)
    assert mutual_information_gap(code, ones).item() == pytest.approx((math.log(20) / math.log(40) + 1) / 2)
    assert separated_attribute_predictability(code, code, ones, unordered="none").item() == pytest.approx(1)


def test_a_rotation_of_it_knows_as_much_and_has_lower_scores():
    found = scores("turned")
    assert found["mig"] < 0.3
    assert found["sap"] < 0.4
    assert found["factor_vae_score"] < 0.9
    assert found["dci_disentanglement"] < 0.5
    assert found["dci_completeness"] < 0.5
    assert found["dci_informativeness"] > 0.6


def test_noise_knows_nothing():
    found = scores("noise")
    assert found["mig"] == pytest.approx(0, abs=0.02)
    assert found["sap"] == pytest.approx(0, abs=0.03)
    assert found["factor_vae_score"] == pytest.approx(1 / 3, abs=0.1)
    assert found["dci_informativeness"] == pytest.approx((1 / 3 + 1 / 6 + 1 / 8) / 3, abs=0.03)


def test_the_mutual_information_is_scikit_learns_of_the_images_and_of_a_resampling():
    factors = drawn(0, 200)
    first, second = factors["scale"], (factors["scale"] + factors["shape"]) % 6
    times = torch.ones(2, 200, dtype=torch.float64)
    times[1] = torch.arange(200) % 3
    repeated = times[1].long()
    expected = [mutual_info_score(first, second)]
    expected.append(mutual_info_score(first.repeat_interleave(repeated), second.repeat_interleave(repeated)))
    assert mutual_information(first, second, times).tolist() == pytest.approx(expected)


def test_the_gap_of_two_dimensions_that_share_a_factor_is_by_hand():
    """The factor has 4 values. One dimension knows both of its bits, the other one: (2 - 1) / 2 bits."""
    factor = torch.arange(4).repeat(10)
    codes = torch.stack((factor, factor % 2), dim=1).double()
    assert mutual_information_gap(Coded(codes, {"factor": factor}), torch.ones(1, 40).double()).item() == pytest.approx(
        0.5
    )
    alone = Coded(codes[:, :1], {"factor": factor})
    assert mutual_information_gap(alone, torch.ones(1, 40).double()).item() == pytest.approx(1)


def test_predictability_is_numpys_correlation_and_scikit_learns_nearest_centroid():
    learnt, judged = coded("turned", 0), coded("turned", 1)
    ones = torch.ones(1, N, dtype=torch.float64)

    def gap_of(name: str) -> float:
        parts = (Coded(each.codes.double(), {name: each.factors[name]}) for each in (learnt, judged))
        return separated_attribute_predictability(*parts, ones, "shape").item()

    correlations = [np.corrcoef(judged.codes[:, d], judged.factors["x"])[0, 1] ** 2 for d in range(3)]
    assert gap_of("x") == pytest.approx(np.diff(sorted(correlations))[-1], abs=1e-6)
    accuracies = []
    for dimension in range(3):
        model = NearestCentroid().fit(learnt.codes[:, [dimension]].numpy(), learnt.factors["shape"].numpy())
        told = model.predict(judged.codes[:, [dimension]].numpy())
        accuracies.append(balanced_accuracy_score(judged.factors["shape"].numpy(), told))
    assert gap_of("shape") == pytest.approx(np.diff(sorted(accuracies))[-1], abs=2e-3)


def test_dci_of_known_importances():
    """Each factor in its own dimension; each everywhere; one dimension of three times the weight for both of two."""
    assert disentanglement_of(torch.eye(3)) == completeness_of(torch.eye(3)) == pytest.approx(1)
    assert disentanglement_of(torch.ones(4, 3)) == pytest.approx(0, abs=1e-6)
    assert completeness_of(torch.ones(4, 3)) == pytest.approx(0, abs=1e-6)
    importance = torch.tensor([[3.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    assert disentanglement_of(importance) == pytest.approx(2 / 8)  # the first has 0 and weight 6, the others 1
    of_factor = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(3)
    assert completeness_of(importance) == pytest.approx(1 - of_factor)


def test_a_dead_dimension_does_not_vote():
    """A constant with a rounding error varies least of all, relative to nothing."""
    learnt, judged = coded("apart", 0), coded("apart", 1)
    dead = [
        Coded(
            torch.cat((each.codes, 1e-9 * torch.randn(N, 1)), dim=1),
            {"x": each.factors["x"], "shape": each.factors["shape"]},
        )
        for each in (learnt, judged)
    ]
    generator = torch.Generator().manual_seed(0)
    assert disentanglement.factor_vae_score(*dead, generator, 0).value == pytest.approx(1, abs=0.02)
