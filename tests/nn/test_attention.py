"""Self-attention against torch's, and what follows from its definition."""

import pytest
import torch
from torch.nn import functional as F

from genmodels.nn.attention import CausalSelfAttention, SelfAttention, attention


def block(*, pool: bool = False, gamma: float = 0.7) -> SelfAttention:
    torch.manual_seed(0)
    layer = SelfAttention(16, pool=pool).double().eval()
    torch.nn.init.constant_(layer.gamma, gamma)
    return layer


def features(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("pool", [False, True])
def test_with_gamma_zero_the_block_is_the_identity_and_gamma_is_still_learned(pool):
    layer, x = block(pool=pool, gamma=0.0), features(2, 16, 6, 6)
    assert torch.equal(layer(x), x)
    (slope,) = torch.autograd.grad(layer(x).square().sum(), layer.gamma)
    assert slope != 0


def test_rows_sum_to_one():
    rows = attention(features(2, 3, 10), features(2, 3, 7))
    assert rows.shape == (2, 10, 7)
    torch.testing.assert_close(rows.sum(2), torch.ones(2, 10, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(features(2, 3, 10).float(), features(2, 3, 7).float()).dtype == torch.float32


def test_it_is_dot_product_attention_with_scale_one():
    layer, x = block(), features(2, 16, 6, 6)
    query, key, value = (f(x).flatten(2).transpose(1, 2) for f in (layer.query, layer.key, layer.value))
    attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    expected = x + 0.7 * layer.output(attended.transpose(1, 2).unflatten(2, (6, 6)))
    torch.testing.assert_close(layer(x), expected)


def test_pooled_keys_and_values():
    layer, x = block(pool=True), features(2, 16, 6, 6)
    key, value = (F.max_pool2d(f(x), 2).flatten(2).transpose(1, 2) for f in (layer.key, layer.value))
    attended = F.scaled_dot_product_attention(layer.query(x).flatten(2).transpose(1, 2), key, value, scale=1.0)
    expected = x + 0.7 * layer.output(attended.transpose(1, 2).unflatten(2, (6, 6)))
    torch.testing.assert_close(layer(x), expected)


def test_without_pooling_it_commutes_with_every_permutation_of_the_pixels():
    layer, x = block(), features(2, 16, 36)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(2))
    shuffled = layer(x[:, :, order].unflatten(2, (6, 6))).flatten(2)
    torch.testing.assert_close(shuffled, layer(x.unflatten(2, (6, 6))).flatten(2)[:, :, order])


def test_it_can_be_differentiated_twice():
    layer, x = block(), features(1, 16, 2, 1).requires_grad_()
    assert torch.autograd.gradgradcheck(layer, x)


def test_a_pixel_attends_to_itself_and_to_those_before_it():
    """A step at a time, with a memory, as all at once; and as the definition has it: head by head, a softmax over the
    products of the query with the keys so far, divided by the root of their size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attend = CausalSelfAttention(6, heads=2, pixels=12).double()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = attend(x)

    memory, stepped = x.new_zeros(2, *attend.memory), []
    for place in range(12):
        pixel, memory = attend.step(x.flatten(2)[:, :, place, None, None], torch.tensor([place]), memory)
        stepped.append(pixel.flatten(1))
    torch.testing.assert_close(torch.stack(stepped, dim=2), together.flatten(2))

    query, key, value = attend.project(x.flatten(2) + attend.position).unflatten(1, (3, 2, 3)).unbind(1)
    for place in (0, 5, 11):
        products = (query[..., place, None] * key[..., : place + 1]).sum(2) / 3**0.5
        found = (products.softmax(2)[:, :, None] * value[..., : place + 1]).sum(3).flatten(1)
        expected = x.flatten(2)[:, :, place] + attend.output(found[..., None])[..., 0]
        torch.testing.assert_close(together.flatten(2)[:, :, place], expected)
