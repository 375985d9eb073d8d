"""Every image, code and dot is where it belongs."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from genmodels.evaluation.pictures import (
    CAPTION_PIXELS,
    COLOURS,
    DOT_PIXELS,
    GREY,
    LINE_PIXELS,
    MANIFOLD_STEPS,
    MARGIN,
    PLOT_PIXELS,
    STEPS,
    TILE_PIXELS,
    contact_sheet,
    grid,
    manifold,
    samples_shown,
    scattered,
    sheet_columns,
    traversals,
)

STRIDE = TILE_PIXELS + LINE_PIXELS


def test_every_image_is_in_its_place_and_small_ones_are_enlarged_by_whole_pixels():
    left = torch.arange(4, dtype=torch.uint8).mul(50).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    right = torch.tensor([0, 255, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(4, 3, 8, 8)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet({"grey": left, "green": right}, images_per_row=2))))
    side = 2 * (64 + 2) + 2
    assert sheet.shape == (CAPTION_PIXELS + side + MARGIN, 3 * MARGIN + 2 * side, 3)
    for position, grey in enumerate((0, 50, 100, 150)):
        y, x = CAPTION_PIXELS + 2 + 66 * (position // 2), MARGIN + 2 + 66 * (position % 2)
        assert (sheet[y : y + 64, x : x + 64] == grey).all()
    assert (sheet[CAPTION_PIXELS + 2 :, 2 * MARGIN + side + 2 :][:64, :64] == [0, 255, 0]).all()
    assert (sheet[: CAPTION_PIXELS - 2] != 255).any()  # the captions


def greys(png: bytes, rows: int, columns: int, left: int = MARGIN) -> np.ndarray:
    """The middle of each tile of a grid."""
    sheet = np.asarray(Image.open(io.BytesIO(png)))[CAPTION_PIXELS + LINE_PIXELS :, left + LINE_PIXELS :]
    middle = slice(TILE_PIXELS // 2, None, STRIDE)
    return sheet[middle, middle, 0][:rows, :columns].astype(int)


def test_a_traversal_moves_one_dimension_at_a_time():
    """An image is as bright as its code's sum; the second dimension varies more and comes first."""
    codes = torch.stack((torch.linspace(100, 110, 101), torch.linspace(0, 100, 101)), dim=1)
    decode = lambda c: c.sum(1).round().byte().view(-1, 1, 1, 1).expand(-1, 1, 8, 8)  # noqa: E731
    shown = greys(traversals(decode, codes), 2, STEPS)
    steps = np.linspace(0.01, 0.99, STEPS)
    np.testing.assert_allclose(shown[0], 100 + 100 * steps, atol=1)  # of the first code, (100, 0)
    np.testing.assert_allclose(shown[1], 100 + 10 * steps, atol=1)


def test_the_manifold_has_the_first_dimension_to_the_right_and_the_second_upwards():
    uniform = torch.linspace(0, 1, 1001)
    prior = torch.stack((uniform, uniform), dim=1)
    decode = lambda c: (10 * (c @ torch.tensor([1.0, 20.0]))).round().byte().view(-1, 1, 1, 1).expand(-1, 1, 8, 8)  # noqa: E731
    shown = greys(manifold(decode, prior), MANIFOLD_STEPS, MANIFOLD_STEPS)
    steps = (np.arange(MANIFOLD_STEPS) + 0.5) / MANIFOLD_STEPS
    np.testing.assert_allclose(shown, 10 * steps[None] + 200 * steps[::-1, None], atol=1)


def test_codes_lie_over_the_prior_in_the_colour_of_their_class():
    prior = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).repeat(500, 1)
    codes = torch.tensor([[-1.0, 1.0, 0.0], [1.0, -1.0, 0.0]]).repeat(500, 1)
    prior = torch.cat((prior, torch.zeros(1000, 1)), dim=1)
    sheet = np.asarray(
        Image.open(io.BytesIO(scattered(prior, codes, torch.tensor([0, 1]).repeat(500), in_pairs=False)))
    )
    plot = sheet[CAPTION_PIXELS : CAPTION_PIXELS + PLOT_PIXELS, -MARGIN - PLOT_PIXELS : -MARGIN]
    near, far = round(PLOT_PIXELS * (0.5 - 1 / 2.2)), round(PLOT_PIXELS * (0.5 + 1 / 2.2))
    assert tuple(plot[far, near]) == tuple(plot[near, far]) == GREY
    assert tuple(plot[near, near]) == (31, 119, 180)
    assert tuple(plot[far, far]) == (255, 127, 14)


def test_a_prior_in_pairs_is_shown_in_the_pair_that_varies_most():
    """A ring in each, so that across two pairs there would be dots in the middle; one dimension alone varies more."""
    angle = torch.linspace(0, 2 * math.pi, 500)
    ring = torch.stack((angle.cos(), angle.sin()), dim=1)
    prior = torch.cat((ring[torch.randperm(500, generator=torch.Generator().manual_seed(0))], ring), dim=1)
    codes = prior * torch.tensor([1.1, 0.1, 1, 1])
    sheet = np.asarray(Image.open(io.BytesIO(scattered(prior, codes, None, in_pairs=True))))
    plot = sheet[CAPTION_PIXELS : CAPTION_PIXELS + PLOT_PIXELS, -MARGIN - PLOT_PIXELS : -MARGIN]
    rows, columns = np.nonzero((plot == COLOURS[0]).all(axis=2))
    radii = np.hypot(*((places - PLOT_PIXELS / 2) / (PLOT_PIXELS / 2.2) for places in (rows, columns)))
    np.testing.assert_allclose(radii, 1, atol=2 * DOT_PIXELS / (PLOT_PIXELS / 2.2))


def test_points_are_dots_of_a_plot():
    """At a quarter of the plane to the right and an eighth upwards of the middle; nothing else is drawn."""
    points = np.tile(np.array([0.5, 0.25], np.float32), (3, 1)).reshape(3, 1, 1, 2)
    plot = grid(points, columns=8)
    assert plot.shape == (PLOT_PIXELS, PLOT_PIXELS, 3)
    rows, columns = np.nonzero((plot != 255).any(axis=2))
    assert (columns.mean(), rows.mean()) == (PLOT_PIXELS * 0.75, PLOT_PIXELS * 0.375)
    assert np.ptp(rows) == np.ptp(columns) == 2 * DOT_PIXELS
    sheet = contact_sheet({"real": torch.from_numpy(points).permute(0, 3, 1, 2)}, images_per_row=8)
    shown = np.asarray(Image.open(io.BytesIO(sheet)))[CAPTION_PIXELS:, MARGIN:][:PLOT_PIXELS, :PLOT_PIXELS]
    assert (shown == plot).all()


def test_rows_of_points_have_colours_of_their_own():
    points = np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]], np.float32).reshape(4, 1, 1, 2)
    plot = grid(points, columns=2, rows_apart=True)
    quarter, half, three_quarters = (PLOT_PIXELS * n // 4 for n in (1, 2, 3))
    assert tuple(plot[half, quarter]) == tuple(plot[half, three_quarters]) == COLOURS[0]
    assert tuple(plot[quarter, half]) == tuple(plot[three_quarters, half]) == COLOURS[1]


@pytest.mark.parametrize(("resolution", "shown"), [(4, 64), (64, 64), (256, 64), (512, 16), (1024, 4)])
def test_a_sheet_of_large_images_has_fewer(resolution: int, shown: int):
    """All that Progressive GAN grows through: 64 of 1024x1024 would be a picture of 67 million pixels."""
    images = np.zeros((samples_shown(resolution), resolution, resolution, 1), np.uint8)
    assert len(images) == shown
    height, width, _ = grid(images, sheet_columns(resolution)).shape
    assert height == width <= 2048 + 9 * LINE_PIXELS
