"""The order of samples is a pure function of the seed, the epoch and the position."""

import numpy as np
import pytest
import torch

from genmodels.data.dataset import Dataset, Table
from genmodels.data.loader import Loader
from genmodels.errors import DataError
from genmodels.models.base import Input

INPUTS = {"image": Input("image", resolution=4), "label": Input("label")}


def numbered(rows: int) -> Dataset:
    """Row i holds the number i, in both columns."""
    images = np.arange(rows, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    return Dataset.from_arrays({"train": {"image@4": images, "label": np.arange(rows)}})


def labels(loader: Loader, position: int) -> list[int]:
    return loader.batch(position)["label"].tolist()


def test_each_epoch_shows_every_row_once_even_when_batches_cross_its_end():
    loader = Loader(numbered(10), INPUTS, 4, seed=1)
    seen = [label for position in range(0, 40, 4) for label in labels(loader, position)]
    for epoch in range(4):
        assert sorted(seen[10 * epoch : 10 * (epoch + 1)]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_columns_of_one_table_stay_aligned():
    batch = Loader(numbered(10), INPUTS, 4, seed=1).batch(8)
    assert batch["image"][:, 0, 0, 0].tolist() == batch["label"].tolist()


def test_a_restart_in_mid_epoch_sees_the_same_batches():
    whole = Loader(numbered(50), INPUTS, 6, seed=3)
    expected = [labels(whole, position) for position in range(0, 120, 6)]
    assert [labels(Loader(numbered(50), INPUTS, 6, seed=3), p) for p in (60, 66, 0)] == [
        expected[i] for i in (10, 11, 0)
    ]


@pytest.mark.parametrize("size", [2, 3])
def test_workers_share_out_the_same_global_batch(size: int):
    alone = Loader(numbered(50), INPUTS, 6, seed=3)
    together = [Loader(numbered(50), INPUTS, 6, seed=3, rank=rank, size=size) for rank in range(size)]
    for position in (0, 6, 48):
        assert [label for loader in together for label in labels(loader, position)] == labels(alone, position)


def test_domains_are_drawn_independently():
    arrays = {"image@4": np.zeros((8, 1, 4, 4), np.uint8), "label": np.arange(8)}
    unpaired = Dataset.from_arrays({"train_a": arrays, "train_b": {n: v[:5] for n, v in arrays.items()}})
    loader = Loader(unpaired, {d: Input("label", domain=d) for d in "ab"}, 5, seed=0)
    first, second = loader.batch(0), loader.batch(5)
    assert sorted(first["b"].tolist()) == sorted(second["b"].tolist()) == list(range(5))
    assert len({*first["a"].tolist(), *second["a"].tolist()[:3]}) == 8


def test_shards_read_as_one_array():
    array = np.random.default_rng(0).integers(0, 255, (20, 3), dtype=np.uint8)
    table = Table({"x": [array[:7], array[7:8], array[8:]]})
    rows = np.array([19, 0, 7, 7, 6, 8])
    assert torch.equal(torch.from_numpy(table.read("x", rows)), torch.from_numpy(array[rows]))


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match="no column 'image@8'"):
        Loader(numbered(4), {"image": Input("image", resolution=8)}, 2, seed=0)


def unequal() -> Dataset:
    """Rows 0 to 9 are of class 7, 10 to 12 of class 2, and 13 and 14 of class 5."""
    labels = np.repeat([7, 2, 5], [10, 3, 2])
    images = np.arange(15, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    return Dataset.from_arrays({"train": {"image@4": images, "label": labels}})


def test_balanced_classes_take_turns_and_go_through_all_their_rows():
    loader = Loader(unequal(), INPUTS, 6, seed=1, balanced=True)
    batches = [loader.batch(position) for position in range(0, 90, 6)]
    shown = torch.cat([batch["label"] for batch in batches]).tolist()
    rows = torch.cat([batch["image"][:, 0, 0, 0] for batch in batches]).tolist()
    turns = [shown[3 * turn : 3 * turn + 3] for turn in range(30)]
    assert all(sorted(turn) == [2, 5, 7] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 4, "in any order"
    for label, own in ((7, range(10)), (2, range(10, 13)), (5, range(13, 15))):
        of_class = [row for row, shown_label in zip(rows, shown, strict=True) if shown_label == label]
        for epoch in range(30 // len(own)):
            assert sorted(of_class[len(own) * epoch : len(own) * (epoch + 1)]) == list(own)


def test_balanced_batches_depend_on_their_position_alone_and_are_shared_out():
    whole = Loader(unequal(), INPUTS, 4, seed=3, balanced=True)
    expected = [whole.batch(position)["image"] for position in range(0, 60, 4)]
    assert torch.equal(Loader(unequal(), INPUTS, 4, seed=3, balanced=True).batch(40)["image"], expected[10])
    halves = [Loader(unequal(), INPUTS, 4, seed=3, rank=rank, size=2, balanced=True) for rank in range(2)]
    assert torch.equal(torch.cat([half.batch(8)["image"] for half in halves]), expected[2])


def test_without_labels_there_is_nothing_to_balance():
    data = Dataset.from_arrays({"train": {"image@4": np.zeros((4, 1, 4, 4), np.uint8)}})
    with pytest.raises(DataError, match="no labels to balance"):
        Loader(data, {"image": INPUTS["image"]}, 2, seed=0, balanced=True)
