"""Contact sheets: what a model makes beside what is real, as PNG."""

import io
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

TILE_PIXELS = 64
MARGIN = 12
CAPTION_PIXELS = 30


def contact_sheet(columns: Mapping[str, Tensor], *, images_per_row: int) -> bytes:
    """Grids of (N, C, R, R) uint8 images side by side under captions; small images are enlarged by whole pixels."""
    grids = {caption: _grid(images, images_per_row) for caption, images in columns.items()}
    width = sum(grid.width + MARGIN for grid in grids.values()) + MARGIN
    height = max(grid.height for grid in grids.values()) + CAPTION_PIXELS + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    left = MARGIN
    for caption, grid in grids.items():
        ImageDraw.Draw(sheet).text((left, 6), caption, fill="black", font=ImageFont.load_default(16))
        sheet.paste(grid, (left, CAPTION_PIXELS))
        left += grid.width + MARGIN
    png = io.BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()


def _grid(images: Tensor, images_per_row: int) -> Image.Image:
    zoom = math.ceil(TILE_PIXELS / images.shape[-1])
    grid = make_grid(F.interpolate(images, scale_factor=zoom, mode="nearest"), images_per_row, padding=2, pad_value=255)
    return Image.fromarray(grid.to(torch.uint8).permute(1, 2, 0).numpy())
