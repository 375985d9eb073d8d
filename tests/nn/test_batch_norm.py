"""Conditional batch norms against torch's, and the statistics that evaluation uses."""

import pytest
import torch
from torch import nn

from genmodels.nn.batch_norm import (
    ConditionalBatchNorm,
    ProjectedBatchNorm,
    UnconditionalBatchNorm,
    measuring_standing_statistics,
)


def features(seed: int = 0, batch: int = 8) -> torch.Tensor:
    return 3 + 2 * torch.randn(batch, 5, 4, 4, generator=torch.Generator().manual_seed(seed))


def with_random_affine(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def test_conditional_batch_norm_with_one_class_is_batch_norm():
    conditional, plain = with_random_affine(ConditionalBatchNorm(5, 1)), nn.BatchNorm2d(5)
    plain.load_state_dict({"weight": conditional.scale[0], "bias": conditional.shift[0]}, strict=False)
    labels = torch.zeros(8, dtype=torch.int64)
    torch.testing.assert_close(conditional(features(), labels), plain(features()))


def test_each_image_gets_the_scale_and_shift_of_its_class():
    """The statistics are the batch's, whatever the classes are."""
    norm = with_random_affine(ConditionalBatchNorm(5, 3))
    labels = torch.tensor([0, 2, 2, 0, 2, 0, 0, 2])
    x = nn.functional.batch_norm(features(), None, None, training=True)
    expected = torch.einsum("bchw,bc->bchw", x, norm.scale[labels]) + norm.shift[labels].view(8, 5, 1, 1)
    torch.testing.assert_close(norm(features(), labels), expected)
    norm(features(), labels).square().sum().backward()
    for table in (norm.scale, norm.shift):
        assert table.grad is not None
        assert table.grad[1].eq(0).all(), "no image was of this class"
        assert table.grad[[0, 2]].ne(0).all()


def test_projected_batch_norm_scales_by_one_plus_a_linear_map():
    norm = ProjectedBatchNorm(5, 3).eval()
    condition = torch.randn(8, 3)
    expected = features() / (1 + 1e-5) ** 0.5 * (1 + norm.scale(condition))[..., None, None]
    torch.testing.assert_close(norm(features(), condition), expected + norm.shift(condition)[..., None, None])


def test_standing_statistics_are_the_means_over_the_measured_batches():
    """Those that training left are forgotten."""
    norm = with_random_affine(UnconditionalBatchNorm(5))
    norm(features(9))
    norm.eval()
    with measuring_standing_statistics(nn.Sequential(norm)):
        measured = [norm(features(seed)) for seed in range(3)]
    assert not norm.training
    torch.testing.assert_close(
        measured[0], nn.functional.batch_norm(features(), None, None, norm.weight, norm.bias, True)
    )
    batches = torch.stack([features(seed) for seed in range(3)])
    torch.testing.assert_close(norm.running_mean, batches.mean((1, 3, 4)).mean(0))
    torch.testing.assert_close(norm.running_var, batches.var((1, 3, 4)).mean(0))


def test_evaluation_treats_each_image_alone():
    norm = with_random_affine(ConditionalBatchNorm(5, 2)).eval()
    labels = torch.tensor([0, 1] * 4)
    with measuring_standing_statistics(norm):
        norm(features(), labels)
    together = norm(features(), labels)
    torch.testing.assert_close(together[:1], norm(features()[:1], labels[:1]))
    # The standing variance is the unbiased one.
    torch.testing.assert_close(together, norm.train()(features(), labels), rtol=1e-2, atol=1e-2)


def test_an_error_while_measuring_leaves_the_mode_as_it_was():
    norm = UnconditionalBatchNorm(5).eval()
    with pytest.raises(RuntimeError), measuring_standing_statistics(norm):
        norm(torch.zeros(1, 4, 2, 2))
    assert not norm.training
    assert norm.momentum == 0.1
