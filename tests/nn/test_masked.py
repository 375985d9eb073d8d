"""Masks of channel groups."""

import torch

from genmodels.nn.masked import HorizontalConv, group_mask


def test_masks_of_three_channels():
    """Red sees red in mask B only, green also red, blue also both (van den Oord et al. 2016, figure 2)."""
    assert group_mask(3, 3, 3, exclusive=True).tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert group_mask(3, 6, 3).tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]


def test_one_group_sees_all_of_the_pixel_or_nothing():
    assert group_mask(2, 3, 1).tolist() == [[1, 1, 1]] * 2
    assert group_mask(2, 3, 1, exclusive=True).tolist() == [[0, 0, 0]] * 2


def test_both_halves_of_a_gated_layer_are_masked_alike():
    layer = HorizontalConv(4, 8, 2, groups=2, halves=2)
    assert torch.equal(layer.mask[:4], layer.mask[4:])
    assert layer.mask[:, :, 0, :2].all()
    assert layer.mask[0, :, 0, 2].tolist() == [1, 1, 0, 0]
