"""Areas and centres of the shapes by geometry, quarter turns by numpy, and all values of all factors."""

import math

import numpy as np
import pytest

from genmodels.data import sprites
from genmodels.data.sprites import HALF_AXES, HALF_SQUARE, HEART, SIDE, SIZES, draw

AREAS = (4 * HALF_SQUARE**2, math.pi * HALF_AXES[0] * HALF_AXES[1], 3.66197 * HEART**2)  # the heart's by quadrature


def drawn(**values: int) -> np.ndarray:
    """One image, of the largest scale and in the middle unless it is said otherwise."""
    chosen = {"shape": 0, "scale": 5, "orientation": 0, "x": 16, "y": 16} | values
    return draw(**{name: np.array([value]) for name, value in chosen.items()})[0]


@pytest.mark.parametrize("shape", range(3))
@pytest.mark.parametrize(("scale", "enlarged"), [(0, 0.5), (3, 0.8), (5, 1.0)])
def test_shapes_have_their_areas_at_every_scale(shape: int, scale: int, enlarged: float):
    areas = [(drawn(shape=shape, scale=scale, orientation=turn) == 255).sum() for turn in range(40)]
    assert np.mean(areas) == pytest.approx(AREAS[shape] * enlarged**2, rel=0.05)


@pytest.mark.parametrize("shape", range(2))
def test_a_shape_is_where_x_and_y_say(shape: int):
    rows, columns = np.nonzero(drawn(shape=shape, orientation=7, x=31, y=0))
    assert (columns.mean(), rows.mean()) == pytest.approx((47, 16), abs=0.2)


def test_the_heart_stands_upright_and_a_quarter_turn_lays_it_on_its_side():
    heart = drawn(shape=2)
    rows, columns = np.nonzero(heart)
    below_the_cleft, above_the_point = (np.ptp(columns[rows == row]) for row in (rows.min() + 5, rows.max() - 2))
    assert below_the_cleft > 3 * above_the_point
    centred = slice(1, 64)  # its centre is in the middle of these
    turned = drawn(shape=2, orientation=10)[centred, centred]
    assert (np.rot90(heart[centred, centred]) != turned).mean() < 0.002


def test_a_square_is_itself_after_a_quarter_turn():
    assert (drawn(orientation=3) != drawn(orientation=13)).mean() < 0.002


def test_no_shape_leaves_the_image():
    for shape in range(3):
        for turn in range(0, 40, 3):
            for place in (0, 31):
                image = drawn(shape=shape, orientation=turn, x=place, y=place)
                assert not np.concatenate((image[0], image[-1], image[:, 0], image[:, -1])).any()


def test_combinations_are_different_and_hold_every_value_of_every_factor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sprites, "IMAGES", 1_000)
    images, factors = sprites.sprites()
    assert images.shape == (1_000, SIDE, SIDE)
    assert set(np.unique(images)) == {0, 255}
    assert len(np.unique(np.stack([*factors.values()]), axis=1).T) == 1_000
    for name, size in SIZES.items():
        assert np.unique(factors[name]).tolist() == list(range(size))
    again, _ = sprites.sprites()
    assert np.array_equal(images, again)
    one = {name: factors[name][[7]] for name in SIZES if name != "colour"}
    assert np.array_equal(draw(**one)[0], images[7])
