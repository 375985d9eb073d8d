"""Which real images a score is made of, and which are left for the classifier: it must not know those it judges by."""

import numpy as np

from genmodels.data.dataset import Table
from genmodels.data.manifest import Manifest
from genmodels.errors import DataError

SEED = 0
MOST_IMAGES = 5_000
FEWEST_IMAGES = 8


def count(manifest: Manifest) -> int:
    """How many images each score takes: as many as every table has, at most 5,000, for scores of different counts
    cannot be compared. Raises DataError if that is too few."""
    name, rows = min(manifest.rows.items(), key=lambda item: item[1])
    if rows < FEWEST_IMAGES:
        raise DataError(
            f"{manifest.name} has {rows} images in its table {name}, too few to judge a model by; it takes at least "
            f"{FEWEST_IMAGES} for training and {FEWEST_IMAGES} held out."
        )
    return min(MOST_IMAGES, rows)


def judged_by(table: Table, images: int) -> np.ndarray:
    """The rows of a table that scores are made of, (images,), in random order."""
    return np.random.default_rng(SEED).permutation(table.rows)[:images]


def learnt_from(table: Table, images: int) -> np.ndarray:
    """The rows of a training table that the classifier may learn from: the others, but at least half of all."""
    return np.random.default_rng(SEED).permutation(table.rows)[min(images, table.rows // 2) :]
