"""Spectral normalisation against the singular value decomposition, and what its state does."""

import pytest
import torch
from torch import nn

from genmodels.nn.spectral_norm import SpectralConv2d, SpectralEmbedding, SpectralLinear, SpectralNorm

LAYERS = [
    (lambda: SpectralLinear(7, 5), torch.randn(3, 7)),
    (lambda: SpectralConv2d(3, 6, 3), torch.randn(2, 3, 8, 8)),
    (lambda: SpectralEmbedding(4, 9), torch.tensor([0, 3])),
]


def largest_singular_value(weight: torch.Tensor) -> float:
    return torch.linalg.svdvals(weight.detach().flatten(1))[0].item()


@pytest.mark.parametrize(("layer", "x"), LAYERS)
def test_the_iteration_finds_the_largest_singular_value(layer, x):
    torch.manual_seed(0)
    layer = layer()
    for _ in range(200):
        layer(x)
    layer.eval()
    assert largest_singular_value(layer.normalized(layer.weight)) == pytest.approx(1.0, abs=1e-5)


def test_a_diagonal_matrix():
    """diag(3, 1) has a largest singular value of 3, so that diag(1, 1/3) is left."""
    torch.manual_seed(0)
    weight = torch.diag(torch.tensor([3.0, 1.0]))
    norm = SpectralNorm(weight)
    for _ in range(30):
        normalized = norm(weight)
    torch.testing.assert_close(normalized, weight / 3)


def test_one_iteration_in_a_training_forward_and_none_in_evaluation():
    torch.manual_seed(0)
    layer, x = SpectralLinear(7, 5), torch.randn(3, 7)
    left = layer.normalized.left.clone()
    layer(x)
    right = nn.functional.normalize(layer.weight.detach().T @ left, dim=0)
    torch.testing.assert_close(layer.normalized.right, right)
    torch.testing.assert_close(
        layer.normalized.left, nn.functional.normalize(layer.weight.detach() @ layer.normalized.right, dim=0)
    )
    layer.eval()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    assert {"normalized.left", "normalized.right"} < state.keys()
    layer(x)
    torch.testing.assert_close(layer.state_dict(), state, rtol=0, atol=0)


def test_the_networks_slope_is_at_most_one():
    """Layers of norm one and ReLUs make a 1-Lipschitz network; the bound is met along its steepest direction."""
    torch.manual_seed(0)
    network = nn.Sequential(SpectralLinear(16, 64), nn.ReLU(), SpectralLinear(64, 64), nn.ReLU(), SpectralLinear(64, 1))
    for _ in range(300):
        network(torch.zeros(1, 16))
    network.eval()
    a, b = torch.randn(2, 10_000, 16)
    b = torch.cat((b[:5000], a[5000:] + 1e-2 * b[5000:]))  # far pairs, and near ones
    slopes = (network(a) - network(b)).abs().squeeze(1) / (a - b).norm(dim=1)
    assert slopes.max() <= 1 + 1e-4
    single = nn.Sequential(network[0])
    steepest = torch.linalg.svd(network[0].weight.detach()).Vh[0]
    assert (single(steepest) - single(torch.zeros(16))).norm().item() == pytest.approx(1.0, abs=1e-4)


def test_the_gradient_is_that_of_the_quotient_with_constant_singular_vectors():
    """d(W / u'Wv) by finite differences in fp64, with the vectors of the forward (Miyato et al. 2018, section 2.1)."""
    torch.manual_seed(0)
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    norm = SpectralNorm(weight).double().eval()
    assert torch.autograd.gradcheck(norm, weight)
    assert torch.autograd.gradgradcheck(norm, weight)


def test_two_forwards_before_one_backward():
    """The second forward moves the buffers that the first one's graph was made with."""
    torch.manual_seed(0)
    layer, (a, b) = SpectralLinear(7, 5), torch.randn(2, 3, 7)
    start = {name: value.clone() for name, value in layer.state_dict().items()}
    (layer(a).square().sum() + layer(b).square().sum()).backward()
    together = layer.weight.grad
    layer.load_state_dict(start)
    layer.weight.grad = None
    layer(a).square().sum().backward()
    layer(b).square().sum().backward()
    torch.testing.assert_close(together, layer.weight.grad)


def test_a_penalty_on_gradients_reaches_the_weights():
    torch.manual_seed(0)
    network = nn.Sequential(SpectralLinear(7, 5), nn.SiLU(), SpectralLinear(5, 1)).double()
    network.eval()
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)

    def penalty(weight: torch.Tensor) -> torch.Tensor:
        parameters = dict(network.named_parameters()) | {"0.weight": weight}
        logits = torch.func.functional_call(network, parameters, (x,))
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return slope.square().sum()

    weight = network[0].weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(penalty, weight)


def test_autocast_does_not_touch_the_norm():
    torch.manual_seed(0)
    layer = SpectralLinear(64, 64).eval()
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer.normalized(layer.weight)
    assert torch.equal(inside, layer.normalized(layer.weight))
