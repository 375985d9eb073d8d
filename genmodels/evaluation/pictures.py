"""Contact sheets: what a model makes beside what is real, as PNG."""

import io
import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE_PIXELS = 64
LINE_PIXELS = 2
MARGIN = 12
CAPTION_PIXELS = 30


def contact_sheet(columns: Mapping[str, Tensor], *, images_per_row: int) -> bytes:
    """Grids of (N, C, R, R) uint8 images side by side under captions; small images are enlarged by whole pixels."""
    grids = {
        caption: Image.fromarray(grid(images.permute(0, 2, 3, 1).numpy(), images_per_row).squeeze())
        for caption, images in columns.items()
    }
    width = sum(each.width + MARGIN for each in grids.values()) + MARGIN
    height = max(each.height for each in grids.values()) + CAPTION_PIXELS + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    left = MARGIN
    for caption, each in grids.items():
        ImageDraw.Draw(sheet).text((left, 6), caption, fill="black", font=ImageFont.load_default(16))
        sheet.paste(each, (left, CAPTION_PIXELS))
        left += each.width + MARGIN
    png = io.BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """(N, H, W, C) uint8 as one picture with white lines between them; small images are enlarged by whole pixels."""
    zoom = math.ceil(TILE_PIXELS / images.shape[2])
    tiles = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    tiles = np.pad(tiles, ((0, 0), (0, LINE_PIXELS), (0, LINE_PIXELS), (0, 0)), constant_values=255)
    columns = min(columns, len(tiles))
    blank = np.full((-len(tiles) % columns, *tiles.shape[1:]), 255, np.uint8)
    rows = np.concatenate((tiles, blank)).reshape(-1, columns, *tiles.shape[1:])
    sheet = np.concatenate(np.concatenate(rows, axis=1), axis=1)
    return np.pad(sheet, ((LINE_PIXELS, 0), (LINE_PIXELS, 0), (0, 0)), constant_values=255)
