"""Normalisations against their definitions."""

import pytest
import torch

from genmodels.nn.normalization import instance_norm, minibatch_stddev, pixel_norm


def test_instance_norm_is_torchs():
    x = 3 + 2 * torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(instance_norm(5)(x), torch.nn.InstanceNorm2d(5)(x))
    assert not list(instance_norm(5).parameters())


def test_pixel_norm_makes_the_mean_square_over_channels_one():
    x = 100 * torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pixel_norm(x).square().mean(1), torch.ones(2, 4, 4))
    torch.testing.assert_close(pixel_norm(x), x / torch.sqrt((x * x).mean(1, keepdim=True) + 1e-8))


def test_pixel_norm_of_zeros_is_zero():
    assert pixel_norm(torch.zeros(1, 3, 2, 2)).eq(0).all()


def test_minibatch_stddev_of_identical_images_is_the_root_of_eps():
    x = torch.randn(1, 3, 4, 4).expand(4, -1, -1, -1)
    result = minibatch_stddev(x, 4)
    assert result.shape == (4, 4, 4, 4)
    torch.testing.assert_close(result[:, 3], torch.full((4, 4, 4), 1e-4))


def test_minibatch_stddev_of_two_constants():
    """Feature maps a and b, constant, deviate by |a - b| / 2 each; the mean over the features goes to every pixel."""
    x = torch.tensor([[0.0, 0.0], [2.0, 6.0]]).view(2, 2, 1, 1).expand(2, 2, 3, 3)
    torch.testing.assert_close(minibatch_stddev(x, 2)[:, 2], torch.full((2, 3, 3), 2.0))


@pytest.mark.parametrize("group_size", [1, 2, 3, 6])
def test_minibatch_stddev_looks_at_its_group_alone(group_size):
    """Independent: numpy-style loop over the groups, and joined batches do not meet."""
    x = torch.randn(6, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.cat(
        [(g.std(0, correction=0).square() + 1e-8).sqrt().mean().expand(group_size) for g in x.split(group_size)]
    )
    torch.testing.assert_close(minibatch_stddev(x, group_size)[:, 5, 0, 0], expected)
    halves = torch.cat([minibatch_stddev(half, group_size) for half in x.split(group_size)])
    torch.testing.assert_close(minibatch_stddev(x, group_size), halves)
