"""Probabilities add up to one, agree with scipy in float64, and stay finite far from the mean."""

import pytest
import torch
from scipy.stats import logistic, norm

from genmodels.nn.likelihoods import Continuous, bernoulli, discretised

MEANS = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.7, 1.0, 2.5])
LOG_SCALES = torch.tensor([-8.0, -5.0, -3.0, -1.0, 1.0])


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("distribution", ["logistic", "gaussian"])
def test_probabilities_of_all_levels_add_up_to_one(distribution: Continuous, levels: int):
    pixels = torch.arange(levels).view(-1, 1, 1)
    log_p = discretised(distribution, pixels, MEANS, LOG_SCALES.view(-1, 1), levels)
    assert log_p.shape == (levels, 5, 7)
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(5, 7), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("distribution", "reference"), [("logistic", logistic), ("gaussian", norm)])
def test_a_level_has_the_mass_of_its_bin(distribution: Continuous, reference):
    level, mean, scale = 200, 0.3, 0.1
    left, right = (level / 127.5 - 1 + side / 255 for side in (-1, 1))
    expected = torch.tensor(reference.cdf(right, mean, scale) - reference.cdf(left, mean, scale)).log()
    ours = discretised(distribution, torch.tensor(level), torch.tensor(mean), torch.tensor(scale).log(), 256)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("distribution", ["logistic", "gaussian"])
def test_far_from_the_mean_value_and_gradient_are_finite(distribution: Continuous):
    mean, log_scale = torch.tensor(1.0, requires_grad=True), torch.tensor(-7.0, requires_grad=True)
    value = discretised(distribution, torch.arange(256), mean, log_scale, 256)
    value.sum().backward()
    assert value.isfinite().all()
    assert mean.grad is not None and mean.grad.isfinite() and mean.grad < 0
    assert log_scale.grad is not None and log_scale.grad.isfinite()


def test_ink_has_the_probability_of_the_sigmoid():
    logits = torch.tensor([0.0, 2.0])
    torch.testing.assert_close(bernoulli(torch.ones(2), logits).exp(), torch.sigmoid(logits))
    torch.testing.assert_close(bernoulli(torch.zeros(2), logits).exp(), 1 - torch.sigmoid(logits))
