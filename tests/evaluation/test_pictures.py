"""A contact sheet shows every pixel of every image where it belongs."""

import io

import numpy as np
import torch
from PIL import Image

from genmodels.evaluation.pictures import CAPTION_PIXELS, MARGIN, contact_sheet


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
