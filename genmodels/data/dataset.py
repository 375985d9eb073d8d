"""A data set in memory or memory-mapped: tables of named, typed columns."""

from collections.abc import Mapping, Sequence

import numpy as np

from genmodels.errors import DataError


class Table:
    """Columns with the same number of rows; each column is a sequence of shards that are read as one array.

    Args:
        columns: shards by column name, every shard an array (or memory map) of shape (rows in the shard, ...).

    Raises:
        DataError: if the columns differ in length.
    """

    def __init__(self, columns: Mapping[str, Sequence[np.ndarray]]):
        self.columns = {name: list(shards) for name, shards in columns.items()}
        self._starts = {name: np.cumsum([0] + [len(s) for s in shards]) for name, shards in self.columns.items()}
        lengths = {name: int(starts[-1]) for name, starts in self._starts.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"The columns of a table differ in length: {lengths}; prepare the data set again.")
        self.rows = next(iter(lengths.values()), 0)

    def read(self, column: str, rows: np.ndarray) -> np.ndarray:
        """The given rows of a column, in the given order, as one new array."""
        shards, starts = self.columns[column], self._starts[column]
        if len(shards) == 1:
            return shards[0][rows]
        out = np.empty((len(rows), *shards[0].shape[1:]), shards[0].dtype)
        shard_of_row = np.searchsorted(starts, rows, side="right") - 1
        for shard in np.unique(shard_of_row):
            inside = shard_of_row == shard
            out[inside] = shards[shard][rows[inside] - starts[shard]]
        return out


class Dataset:
    """Tables by name: `train` and `test`, or `train_a`, `train_b`, `test_a` and `test_b` of an unpaired set."""

    def __init__(self, tables: Mapping[str, Table]):
        self.tables = dict(tables)

    @classmethod
    def from_arrays(cls, tables: Mapping[str, Mapping[str, np.ndarray]]) -> "Dataset":
        """A data set of plain arrays, for notebooks, tests and benchmarks."""
        return cls({name: Table({c: [array] for c, array in columns.items()}) for name, columns in tables.items()})

    def table(self, split: str, domain: str | None = None) -> Table:
        """The table of a split, and of a domain where the set is unpaired; raises DataError if there is none."""
        name = split if domain is None else f"{split}_{domain}"
        if name not in self.tables:
            known = ", ".join(self.tables)
            raise DataError(f"The data set has no table {name!r} (it has {known}); it does not fit this model.")
        return self.tables[name]
