"""Levels and images are the same thing in two notations."""

import pytest
import torch

from genmodels.models.base import scaled
from genmodels.nn.levels import from_levels, to_levels


def test_bytes_are_256_levels():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_levels(scaled(every), 256), every.long())
    torch.testing.assert_close(from_levels(every, 256), scaled(every))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_come_back_through_the_bytes_that_store_them(levels: int):
    every = torch.arange(levels)
    stored = from_levels(every, levels).add(1).mul(127.5).round().byte()
    assert torch.equal(to_levels(scaled(stored), levels), every)


def test_values_outside_the_range_are_the_nearest_level():
    assert to_levels(torch.tensor([-3.0, 0.2, 7.0]), 3).tolist() == [0, 1, 2]
