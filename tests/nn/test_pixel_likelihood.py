"""The distributions of a pixel: they add up to 1, are what is drawn, and agree with the formula of their paper."""

import itertools
import math

import pytest
import torch

from genmodels.nn.pixel_likelihood import Categorical, LogisticMixture, PixelLikelihood, bits_per_dim

LIKELIHOODS = [Categorical(2, 3), LogisticMixture(2, 3, 4), Categorical(1, 5), LogisticMixture(1, 5, 2)]
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda each: type(each).__name__)


def parameters_of(likelihood: PixelLikelihood) -> torch.Tensor:
    return torch.randn(1, likelihood.outputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def every_pixel(likelihood: Categorical | LogisticMixture) -> torch.Tensor:
    values = torch.linspace(-1, 1, likelihood.levels, dtype=torch.float64).tolist()
    return torch.tensor([*itertools.product(values, repeat=likelihood.channels)], dtype=torch.float64)


def probabilities(likelihood: Categorical | LogisticMixture) -> torch.Tensor:
    pixels = every_pixel(likelihood)
    parameters = parameters_of(likelihood).expand(len(pixels), -1)[..., None, None]
    return likelihood.log_likelihood(parameters, pixels[..., None, None]).exp()


@likelihoods
def test_the_probabilities_of_all_values_add_up_to_1(likelihood: Categorical | LogisticMixture):
    assert probabilities(likelihood).sum().item() == pytest.approx(1, abs=1e-6)


@likelihoods
def test_pixels_are_drawn_as_often_as_they_are_probable(likelihood: Categorical | LogisticMixture):
    """Within four standard deviations of the share among 20,000 draws."""
    n = 20_000
    uniform = torch.rand(n, likelihood.draws, generator=torch.Generator().manual_seed(1))
    known: list[torch.Tensor] = []
    for _ in range(likelihood.channels):
        known.append(likelihood.draw(parameters_of(likelihood).float().expand(n, -1), uniform, known))
    drawn = torch.stack(known, dim=1)
    for pixel, probability in zip(every_pixel(likelihood), probabilities(likelihood), strict=True):
        share = (drawn - pixel).abs().lt(1e-3).all(1).double().mean()
        assert (share - probability).abs() <= 4 * math.sqrt(probability * (1 - probability) / n)


def test_a_mixture_is_the_papers_formula():
    """Two components and three channels, with 256 levels, written out (Salimans et al. 2017, eq. 2 and section 2.2)."""
    likelihood, k = LogisticMixture(3, 256, 2), 2
    parameters = parameters_of(likelihood)
    p = parameters.flatten().tolist()
    for pixel in [(-1.0, 1.0, 0.2), (51 / 127.5 - 1, 200 / 127.5 - 1, -1.0)]:
        expected = 0.0
        for m in range(k):
            weight = math.exp(p[m]) / sum(math.exp(p[other]) for other in range(k))
            a, b, c = (math.tanh(p[k * (1 + 6 + pair) + m]) for pair in range(3))
            red, green, _ = pixel
            shifts = 0.0, a * red, b * red + c * green
            for channel, value in enumerate(pixel):
                mean = p[k * (1 + channel) + m] + shifts[channel]
                scale = math.exp(max(p[k * (4 + channel) + m], -7))
                upper = 1.0 if value > 0.999 else 1 / (1 + math.exp(-(value + 1 / 255 - mean) / scale))
                lower = 0.0 if value < -0.999 else 1 / (1 + math.exp(-(value - 1 / 255 - mean) / scale))
                weight *= upper - lower
            expected += weight
        image = torch.tensor(pixel, dtype=torch.float64).view(1, 3, 1, 1)
        log_likelihood = likelihood.log_likelihood(parameters[..., None, None], image)
        assert log_likelihood.item() == pytest.approx(math.log(expected), rel=1e-4)


def test_far_values_keep_a_finite_likelihood_and_gradient():
    likelihood = LogisticMixture(1, 256, 1)
    parameters = torch.tensor([0.0, 500.0, -50.0]).view(1, 3, 1, 1).requires_grad_()
    log_likelihood = likelihood.log_likelihood(parameters, torch.zeros(1, 1, 1, 1))
    (gradient,) = torch.autograd.grad(log_likelihood.sum(), parameters)
    assert log_likelihood.isfinite().all() and gradient.isfinite().all()


def test_bits_per_dimension_of_a_uniform_density():
    assert bits_per_dim(torch.tensor([-12.0, -12.0]) * math.log(256), 12).item() == pytest.approx(8.0)
