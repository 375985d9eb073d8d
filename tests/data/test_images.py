"""Decoding, cropping, resizing and the pyramid, against values that can be worked out by hand."""

import io
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genmodels.data.images import TOO_SMALL, Unusable, decoded, levels, pyramid, pyramid_resolutions, square


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_claiming(width: int, height: int) -> bytes:
    """A few bytes that say they are a picture of that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_pyramid_resolutions():
    assert pyramid_resolutions(64) == [64, 32, 16, 8, 4]
    assert pyramid_resolutions(48) == [48, 24, 12, 6]
    assert pyramid_resolutions(4) == [4]


def test_each_level_averages_boxes_of_the_level_above_and_rounds_only_what_is_stored():
    """One pixel of 1 in an 8×8 image is 1/4 at 4×4; a quarter image of 254 and 255 rounds half to even."""
    images = np.zeros((2, 1, 8, 8), np.uint8)
    images[0, 0, 0, :2] = 1, 1  # the mean of its 2×2 box is 0.5, which rounds to 0
    images[1, 0, 0, :2] = 255, 255
    images[1, 0, 1, :2] = 254, 254  # the mean is 254.5
    columns = pyramid(images)
    assert (columns["image@8"] == images).all()
    assert columns["image@4"][:, 0, 0, 0].tolist() == [0, 254]


def test_unrounded_averages_go_down_the_pyramid():
    """Every 2×2 box of the upper half has mean 0.5, which is stored as 0 but handed on as 0.5."""
    images = np.zeros((1, 3, 16, 16), np.uint8)
    images[..., ::2, :] = 1
    images[..., 8:, :] = 1
    exact = images.astype(np.float64).reshape(1, 3, 4, 4, 4, 4).mean(axis=(3, 5))
    assert (pyramid(images)["image@4"] == np.rint(exact)).all()


def test_floats_are_not_rounded_and_not_resized():
    point = np.array([[[0.1, -0.7]]], np.float32)
    result = levels([point, -point], 1, 2)
    assert (result.columns["image@1"] == np.array([[[[0.1]], [[-0.7]]], [[[-0.1]], [[0.7]]]], np.float32)).all()
    blocks = np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8) / 64
    assert (pyramid(blocks)["image@4"] == blocks.reshape(1, 1, 4, 2, 4, 2).mean(axis=(3, 5))).all()
    larger = levels([point], 8, 2)
    assert larger.set_aside == {TOO_SMALL: 1}
    assert larger.smallest_side == 1


def test_a_margin_is_given_to_all_but_images_of_the_resolution_asked_for():
    """As to MNIST's of 28x28, whose halvings end at 7x7 and those with a margin of 2 at 4x4."""
    image = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    own, wider, smaller = (levels([image], resolution, 1, margin=2).columns for resolution in (28, 32, 16))
    assert list(own) == ["image@28", "image@14", "image@7"]
    assert (own["image@28"][0, 0] == image).all()
    assert (wider["image@32"][0, 0] == np.pad(image, 2)).all()
    assert (smaller["image@16"][0] == square(np.pad(image, 2), 16, 1)).all()


def test_the_centre_square_is_taken():
    """A wide image, black but for a white middle square, is white; a tall one likewise."""
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    for image in (wide, wide.transpose(1, 0, 2)):
        assert (square(encoded(Image.fromarray(image)), 8, 3) == 255).all()


def test_a_constant_image_stays_constant_at_any_scale():
    image = Image.new("RGB", (123, 77), (10, 20, 30))
    assert (square(encoded(image), 16, 3) == np.array([10, 20, 30])[:, None, None]).all()


def test_resizing_is_antialiased():
    """A chequerboard of single pixels, an eighth the size, is grey, where picking pixels would give black or white."""
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(square(board, 32, 1).astype(int) - 127).max() <= 8


def test_an_image_of_the_right_size_is_not_touched():
    image = noise(8, 8)
    assert (square(encoded(image), 8, 3).transpose(1, 2, 0) == np.asarray(image)).all()


def test_modes_become_rgb():
    assert square(encoded(Image.new("L", (4, 4), 7)), 4, 3).tolist() == np.full((3, 4, 4), 7).tolist()
    palette = Image.new("RGB", (4, 4), (255, 0, 0)).quantize(2)
    assert square(encoded(palette), 4, 3)[:, 0, 0].tolist() == [255, 0, 0]
    assert square(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"), 4, 3)[0].min() > 240
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (square(encoded(half), 4, 3) == 255).all(), "what is transparent lies on white"


def test_a_photograph_taken_sideways_is_turned_upright():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: left becomes top
    upright = square(encoded(Image.fromarray(image), "JPEG", exif=exif, quality=100), 8, 1)[0]
    assert upright[:3].min() > 200
    assert upright[5:].max() < 50


UNUSABLE = {
    "empty": b"",
    "not an image": b"GIF? no, text.",
    "truncated": encoded(noise(64, 64), "JPEG")[:1500],
    "corrupt": encoded(noise(8, 8)).replace(b"IDAT", b"IDAT" + bytes(4)),
    "more than 64,000,000 pixels": png_claiming(60_000, 60_000),
    "not 8 bits a channel": encoded(Image.fromarray(np.zeros((8, 8), np.uint16))),
    TOO_SMALL: encoded(noise(7, 50)),
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_what_cannot_be_used_is_named(reason: str):
    with pytest.raises(Unusable) as caught:
        square(UNUSABLE[reason], 8, 3)
    assert caught.value.args[0] == reason


def test_a_format_that_runs_programs_is_not_even_opened():
    """PostScript, which Pillow would hand to an interpreter."""
    with pytest.raises(Unusable, match="not an image"):
        decoded(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "GIF", "WEBP"])
def test_no_damage_brings_the_decoder_down(format: str):
    """Every byte of a small file changed in turn, and the file cut everywhere: an image or a reason, nothing else."""
    whole = encoded(noise(16, 16), format)
    generator = np.random.default_rng(0)
    for position in generator.permutation(len(whole))[:150]:
        for data in (whole[:position], whole[:position] + bytes([whole[position] ^ 0xA5]) + whole[position + 1 :]):
            with suppress(Unusable):
                assert square(data, 8, 3).shape == (3, 8, 8)


def test_levels_count_what_they_leave_out():
    good = encoded(noise(8, 8))
    result = levels([good, b"", good, b"", UNUSABLE[TOO_SMALL]], 8, 3)
    assert result.kept == [0, 2]
    assert result.columns["image@8"].shape == (2, 3, 8, 8)
    assert result.columns["image@4"].shape == (2, 3, 4, 4)
    assert result.set_aside == {"empty": 2, TOO_SMALL: 1}
    assert result.first_set_aside == {"empty": 1, TOO_SMALL: 4}
    assert result.smallest_side == 7


def test_nothing_usable_still_has_columns():
    assert levels([b""], 8, 1).columns["image@4"].shape == (0, 1, 4, 4)


def test_the_processes_of_a_pool_need_not_import_torch():
    code = "import sys, genmodels.data.images; sys.exit(bool({'torch', 'boto3', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
