"""The orthogonal penalty on matrices where it is known."""

import pytest
import torch

from genmodels.nn.orthogonal import orthogonal_penalty


def test_orthogonal_filters_cost_nothing_whatever_their_norms():
    torch.manual_seed(0)
    filters = torch.nn.init.orthogonal_(torch.empty(5, 4, 3, 3)) * torch.tensor([1, 2, 3, 4, 5.0]).view(5, 1, 1, 1)
    assert orthogonal_penalty([filters]).item() == pytest.approx(0, abs=1e-9)


def test_two_filters():
    """(1, 0) and (1, 1) have a product of 1, counted in both orders; (2, 0) and (3, 0) one of 6."""
    first, second = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [3.0, 0.0]])
    assert orthogonal_penalty([first]).item() == 2
    assert orthogonal_penalty([first, second]).item() == 2 + 72


@pytest.mark.parametrize("shape", [(5, 12), (12, 5)], ids=["wide", "tall"])
def test_its_gradient_is_four_times_the_off_diagonal_products_times_the_filters(shape: tuple[int, int]):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(orthogonal_penalty([weight]), weight)
    products = weight @ weight.t()
    torch.testing.assert_close(gradient, 4 * (products - products.diag().diag()) @ weight)
