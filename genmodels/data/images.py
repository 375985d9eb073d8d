"""From one encoded image to the uint8 levels of its resolution pyramid; what cannot be used is named by its reason.
Points, which are images of one pixel in float32, stay as they are.

Pillow's decoders and integer resampling give the same bytes on every machine. They are told to read a few plain
formats only, and only up to a size in pixels, because the bytes may be hostile. numpy and Pillow only, so that the
processes of a pool start quickly.
"""

import io
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm"}
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "PPM")
MAX_PIXELS = 64_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

Content = bytes | np.ndarray
"""An encoded image, or decoded pixels: uint8, (H, W) or (H, W, 3); or float32 in [-1, 1], (H, W, C)."""


class Unusable(Exception):
    """Why an image is set aside."""


TOO_SMALL = "smaller than the resolution"


@dataclass
class Levels:
    """What became of a run of images: arrays by column, (N, C, R, R) uint8 or float32, for the positions in `kept`; how
    many were set aside and at which position first, by reason; and the smallest side of those that are too small."""

    kept: list[int]
    columns: dict[str, np.ndarray]
    set_aside: Counter[str] = field(default_factory=Counter)
    first_set_aside: dict[str, int] = field(default_factory=dict)
    smallest_side: int = MAX_PIXELS


def pyramid_resolutions(resolution: int) -> list[int]:
    """Halvings of a resolution down to 4, or to the last that is whole."""
    levels = [resolution]
    while levels[-1] % 2 == 0 and levels[-1] // 2 >= 4:
        levels.append(levels[-1] // 2)
    return levels


def levels(contents: Sequence[Content], resolution: int, channels: int, margin: int = 0) -> Levels:
    """Decodes, centre-crops and resizes each image once, and halves it down the pyramid. Decoded pixels get a
    black margin, unless they have that resolution without."""
    result = Levels(kept=[], columns={})
    images = []
    for position, content in enumerate(contents):
        try:
            if isinstance(content, np.ndarray) and margin and content.shape[0] != resolution:
                content = np.pad(content, margin)
            images.append(square(content, resolution, channels))
            result.kept.append(position)
        except Unusable as unusable:
            reason, *side = unusable.args
            result.set_aside[reason] += 1
            result.first_set_aside.setdefault(reason, position)
            result.smallest_side = min([result.smallest_side, *side])
    batch = np.stack(images) if images else np.empty((0, channels, resolution, resolution), np.uint8)
    result.columns = pyramid(batch)
    return result


def pyramid(images: np.ndarray) -> dict[str, np.ndarray]:
    """The levels of (N, C, R, R) images by column name: each is the 2×2 box average of the one above; of uint8 images
    only the stored bytes are rounded, half to even, not what the next level is made of (Karras et al. 2018, the data
    set tool)."""
    columns = {}
    level = images.astype(np.float32)
    for resolution in pyramid_resolutions(images.shape[-1]):
        if resolution != images.shape[-1]:  # sums of four floats are exact, so their order does not matter
            rows = level[..., ::2, :] + level[..., 1::2, :]
            level = (rows[..., ::2] + rows[..., 1::2]) * np.float32(0.25)
        columns[f"image@{resolution}"] = np.rint(level).astype(np.uint8) if images.dtype == np.uint8 else level
    return columns


def square(content: Content, resolution: int, channels: int) -> np.ndarray:
    """The centre square of an image at a resolution, (C, R, R); raises Unusable. Floats are not resized."""
    if isinstance(content, np.ndarray):
        if content.shape == (resolution, resolution, channels)[: 2 if channels == 1 else 3]:
            return content[None] if channels == 1 else content.transpose(2, 0, 1)
        if content.dtype != np.uint8:
            raise Unusable(TOO_SMALL, min(content.shape[:2]))
    image = Image.fromarray(content) if isinstance(content, np.ndarray) else decoded(content)
    image = image.convert("L" if channels == 1 else "RGB")
    side = min(image.size)
    if side < resolution:
        raise Unusable(TOO_SMALL, side)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    # Antialiased bicubic, as FID's reference measurements are made; large factors by whole-pixel averages first.
    image = image.resize((resolution, resolution), Image.Resampling.BICUBIC, reducing_gap=2.0)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decoded(data: bytes) -> Image.Image:
    """An 8-bit image, upright, transparent parts on white; raises Unusable."""
    if not data:
        raise Unusable("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.mode.startswith(("I", "F")):
                raise Unusable("not 8 bits a channel")
            image.load()
            image = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unusable(f"more than {MAX_PIXELS:,} pixels") from error
    except Image.UnidentifiedImageError as error:
        raise Unusable("not an image") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        IndexError,
        KeyError,
        TypeError,
        EOFError,
        struct.error,
        zlib.error,
    ) as error:
        raise Unusable("truncated" if "truncated" in str(error) else "corrupt") from error
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
