"""Moments of the priors, and where their components lie."""

import math

import pytest
import torch
from torch import Tensor

from genmodels.nn.priors import PETAL, PRIORS, ROLL_RADIUS

ROWS = 40_000


def drawn(name: str, dimensions: int = 4, component: int = -1, components: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    normal, uniform = (
        torch.randn(ROWS, dimensions, generator=generator),
        torch.rand(ROWS, dimensions, generator=generator),
    )
    return PRIORS[name].codes(normal, uniform, torch.full((ROWS,), component), components)


@pytest.mark.parametrize(("name", "variance"), [("gaussian", 1.0), ("uniform", 1 / 3)])
def test_independent_dimensions_have_their_variance(name: str, variance: float):
    codes = drawn(name)
    torch.testing.assert_close(codes.mean(0), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(codes.T), variance * torch.eye(4), atol=0.03, rtol=0)


def test_a_petal_is_long_along_its_own_direction():
    distance, along, across = PETAL
    codes = drawn("mixture_of_gaussians", component=3, components=8)
    angle = torch.tensor(2 * math.pi * 3 / 8)
    direction, normal = torch.stack((angle.cos(), angle.sin())), torch.stack((-angle.sin(), angle.cos()))
    for pair in (codes[:, :2], codes[:, 2:]):
        assert (pair @ direction).mean().item() == pytest.approx(distance, abs=0.02)
        assert (pair @ direction).std().item() == pytest.approx(along, rel=0.02)
        assert (pair @ normal).std().item() == pytest.approx(across, rel=0.02)


def test_petals_are_equally_frequent_and_hardly_overlap():
    codes = drawn("mixture_of_gaussians", dimensions=2)
    nearest = (torch.atan2(codes[:, 1], codes[:, 0]) / (2 * math.pi / 10)).round().long() % 10
    shares = nearest.bincount(minlength=10) / ROWS
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.01, rtol=0)
    own = torch.cat([drawn("mixture_of_gaussians", 2, component=0)])
    assert (torch.atan2(own[:, 1], own[:, 0]).abs() < math.pi / 10).float().mean() > 0.97


def test_the_roll_is_evenly_covered_and_its_components_follow_one_another():
    """The length of a spiral grows with the square of its radius, which is thus uniform, and in order by component."""
    squared = drawn("swiss_roll", dimensions=2).square().sum(1) / ROLL_RADIUS**2
    torch.testing.assert_close(
        squared.quantile(torch.tensor([0.25, 0.5, 0.75])), torch.tensor([0.25, 0.5, 0.75]), atol=0.02, rtol=0
    )
    fourth = drawn("swiss_roll", dimensions=2, component=4).square().sum(1) / ROLL_RADIUS**2
    assert fourth.quantile(0.02) > 0.38
    assert fourth.quantile(0.98) < 0.52
