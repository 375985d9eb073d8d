"""The gated PixelCNN with embedded levels, a condition and attention; without them it is a model of images."""

from typing import Any

import pytest
import torch
from naive_sampling import sample
from torch import Tensor

from genmodels.nn.gated_pixelcnn import GatedPixelCNN
from genmodels.nn.pixel_likelihood import Categorical

SIZE, LEVELS = 4, 5
EVERYTHING: dict[str, Any] = {"classes": 3, "maps": 2, "embedded": 6, "attention_every": 2, "heads": 2}


def network(**options: Any) -> GatedPixelCNN:
    """Whose every weight, masked ones too, has moved away from its start."""
    options = {"features": 8, "layers": 4, "kernels": (3, 3), "head_features": 16, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = GatedPixelCNN(Categorical(1, LEVELS), channels=1, resolution=SIZE, **options)
        for parameter in made.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return made.eval()


def reals(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("attention_every", [1, 2, 4])
def test_attention_and_embedding_let_a_pixel_see_those_before_it_and_no_other(attention_every: int):
    """The Jacobian by the vectors that stand for the levels is strictly lower triangular, and full."""
    net = network(**EVERYTHING | {"attention_every": attention_every}).double()
    net.embedding = None  # so that it takes the vectors
    labels, condition = torch.tensor([1]), reals(1, 2, SIZE, SIZE).double()
    jacobian = torch.autograd.functional.jacobian(
        lambda x: net(x, labels, condition)[0], reals(1, 6, SIZE, SIZE).double()
    )
    seen = (jacobian[:, :, :, 0] != 0).any(dim=3).any(dim=0).flatten(2).flatten(0, 1)
    assert torch.equal(seen, torch.ones(SIZE**2, SIZE**2).tril(-1).bool())


def test_attention_reaches_further_than_any_kernel():
    """With one layer of the smallest kernels only attention tells the last pixel of the first."""
    for attention_every, expected in ((0, False), (1, True)):
        net = network(layers=1, embedded=6, attention_every=attention_every)
        net.embedding = None
        x = reals(1, 6, SIZE, SIZE).requires_grad_()
        net(x)[0, :, -1, -1].sum().backward()
        assert x.grad is not None
        assert (x.grad[0, :, 0, 0] != 0).any().item() is expected


def test_a_pixel_sees_the_condition_of_its_row_and_of_those_above():
    """To its right as well, which pixels may not: the condition is known beforehand."""
    net = network(maps=2)
    condition = reals(1, 2, SIZE, SIZE).requires_grad_()
    net(torch.zeros(1, 1, SIZE, SIZE), None, condition)[0, :, 1, 1].sum().backward()
    assert condition.grad is not None
    seen = (condition.grad[0] != 0).any(dim=0)
    assert seen[:2].all()
    assert not seen[2:].any()


@pytest.mark.parametrize(
    "options",
    [EVERYTHING, {"embedded": 6}, {"maps": 2}, {"attention_every": 2, "heads": 4}, {"kernels": (9, 5), "embedded": 3}],
    ids=str,
)
def test_sampling_with_a_memory_draws_the_very_images_of_sampling_without(options: dict[str, Any]):
    net = network(**options)
    labels = torch.arange(30) % 3 if "classes" in options else None
    condition = reals(30, 2, SIZE, SIZE) if "maps" in options else None
    uniform = torch.rand(30, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        images = net.sample(uniform, labels, condition)
    naive = sample(net, net.likelihood, images, uniform, labels, condition)
    assert torch.equal(images, naive)
    assert len(images.unique()) == LEVELS


def test_levels_without_an_order_have_vectors_of_their_own():
    """Permuting the levels of the images and the vectors alike changes nothing."""
    net = network(embedded=6)
    order = torch.randperm(LEVELS, generator=torch.Generator().manual_seed(4))
    levels = torch.randint(LEVELS, (2, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(5))
    before = net(levels * 2 / (LEVELS - 1) - 1.0)
    assert net.embedding is not None
    net.embedding.weight.data[order] = net.embedding.weight.data.clone()
    torch.testing.assert_close(net(order[levels] * 2 / (LEVELS - 1) - 1.0), before)
