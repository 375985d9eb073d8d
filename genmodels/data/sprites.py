"""White shapes on black that six factors decide, as in dSprites (Matthey, Higgins, Hassabis & Lerchner 2017): colour,
shape, scale, orientation and the place in x and y. Drawn here, so that nothing has to be fetched."""

from collections.abc import Callable

import numpy as np

SIDE = 64
IMAGES = 20_000
SHAPES = ("square", "ellipse", "heart")
SIZES = {"colour": 1, "shape": len(SHAPES), "scale": 6, "orientation": 40, "x": 32, "y": 32}  # 737,280 combinations
HALF_SQUARE, HALF_AXES, HEART = 10.0, (14.0, 7.0), 11.0  # pixels at the largest scale
BLOCK_IMAGES = 500

Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of places right of and above a shape's centre, in pixels
INSIDE: tuple[Inside, ...] = (
    lambda u, v: np.maximum(abs(u), abs(v)) <= HALF_SQUARE,
    lambda u, v: (u / HALF_AXES[0]) ** 2 + (v / HALF_AXES[1]) ** 2 <= 1,
    lambda u, v: ((u**2 + v**2) / HEART**2 - 1) ** 3 <= u**2 * v**3 / HEART**5,
)


def sprites() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """20,000 different combinations of the factors, always the same: images (N, 64, 64) uint8, and each factor's values
    (N,) by name."""
    combinations = np.random.default_rng(0).choice(np.prod([*SIZES.values()]), IMAGES, replace=False)
    values = np.unravel_index(combinations, tuple(SIZES.values()))
    factors = {name: column.astype(np.int64) for name, column in zip(SIZES, values, strict=True)}
    images = np.concatenate(
        [
            draw(**{name: column[start : start + BLOCK_IMAGES] for name, column in factors.items() if name != "colour"})
            for start in range(0, IMAGES, BLOCK_IMAGES)
        ]
    )
    return images, factors


def draw(shape: np.ndarray, scale: np.ndarray, orientation: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The images of these values of the factors, (N,) each: (N, 64, 64) of 0 and 255, without shades at the edges.

    Scales go from a half to 1, orientations around once, places pixel by pixel as far as all shapes stay in the image.
    """
    pixels = np.arange(SIDE, dtype=np.float32)
    margin = (SIDE - SIZES["x"]) // 2
    right = pixels[None, None, :] - (margin + x)[:, None, None]
    above = (margin + y)[:, None, None] - pixels[None, :, None]
    angle = 2 * np.pi * orientation / SIZES["orientation"]
    enlarged = 0.5 + 0.5 * scale / (SIZES["scale"] - 1)
    cosine, sine = ((turn(angle) / enlarged).astype(np.float32)[:, None, None] for turn in (np.cos, np.sin))
    u, v = cosine * right + sine * above, cosine * above - sine * right
    images = np.zeros(u.shape, np.uint8)
    for kind, inside in enumerate(INSIDE):
        rows = shape == kind
        images[rows] = np.where(inside(u[rows], v[rows]), 255, 0)
    return images
