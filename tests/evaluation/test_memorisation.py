"""Copies, shifted copies and what was held out, against a search by hand."""

import numpy as np
import pytest
import torch

from genmodels.data.dataset import Table
from genmodels.data.images import pyramid
from genmodels.evaluation import memorisation
from genmodels.evaluation.memorisation import distance_ratio, nearest_training_images


def drawn(n: int, seed: int, resolution: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, resolution, resolution), dtype=np.uint8)


def table(images: np.ndarray) -> Table:
    return Table({name: [level] for name, level in pyramid(images).items()})


def test_a_copy_is_found_and_its_distance_is_nought(monkeypatch):
    monkeypatch.setattr(memorisation, "BLOCK_ROWS", 7)  # blocks that do not divide the rows
    train = drawn(50, 0)
    nearest = nearest_training_images(torch.from_numpy(train[[31, 4, 49, 0]]), table(train))
    assert nearest.rows.tolist() == [31, 4, 49, 0]
    assert nearest.distances.tolist() == [0, 0, 0, 0]


def test_the_nearest_is_that_of_a_search_by_hand():
    """At 16 pixels a side, where 2x2 pixels are one."""
    train, made = drawn(40, 0), drawn(5, 1)
    small = [pyramid(images)["image@16"].astype(float) for images in (made, train)]
    distances = np.array([[np.sqrt(((a - b) ** 2).mean()) for b in small[1]] for a in small[0]])
    nearest = nearest_training_images(torch.from_numpy(made), table(train))
    assert nearest.rows.tolist() == distances.argmin(axis=1).tolist()
    np.testing.assert_allclose(nearest.distances, distances.min(axis=1), rtol=1e-5)


@pytest.mark.parametrize(("resolution", "side"), [(256, 16), (16, 16), (28, 14), (8, 8), (4, 4), (33, 33)])
def test_the_images_compared_have_16_pixels_a_side_or_the_next_fewer(resolution: int, side: int):
    assert memorisation.side(resolution) == side


def test_the_ratio_tells_copies_from_new_images():
    train = table(drawn(200, 0, 8, 1))
    new, other, copied = (drawn(100, seed, 8, 1) for seed in (1, 2, 0))
    held_out = nearest_training_images(torch.from_numpy(new), train).distances

    def ratio(images: np.ndarray) -> tuple[float, float, float]:
        made = nearest_training_images(torch.from_numpy(images), train).distances
        estimate = distance_ratio(made, held_out, generator=torch.Generator().manual_seed(0))
        return estimate.low, estimate.value, estimate.high

    low, value, high = ratio(other)
    assert low < 1 < high
    assert value == pytest.approx(1, abs=0.05)
    assert ratio(copied) == (0, 0, 0)
    half = np.concatenate((copied[:50], other[:50]))
    assert ratio(half)[1] == pytest.approx(0.5, abs=0.05)
