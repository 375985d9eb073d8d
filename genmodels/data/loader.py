"""Batches from memory-mapped shards, in an order that is a pure function of (seed, epoch, position).

Every epoch is a permutation of the rows; or, balanced, every class has its turn as often as any other.

There is no state to checkpoint: `batch(position)` answers for any position, so a restart in mid-epoch and any
number of workers see the same global batches. A batch is bounded by one gather from the page cache; the next
one is read while the present one trains.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from genmodels.data.dataset import Dataset, Table
from genmodels.errors import DataError
from genmodels.models.base import Batch, Input


class Loader:
    """This worker's rows of each global batch.

    Args:
        dataset: where the columns lie.
        inputs: the column for each name of a batch; a column with a resolution is stored as `column@resolution`.
        batch_images: rows of a global batch; a multiple of `size`.
        seed: of the order.
        rank, size: this worker and the number of workers.
        device: where batches go; host memory is pinned for CUDA.
        balanced: draw each class of the column `label` equally often, however many rows it has.

    Raises:
        DataError: if a column is missing or a table empty.
    """

    def __init__(
        self,
        dataset: Dataset,
        inputs: Mapping[str, Input],
        batch_images: int,
        *,
        seed: int,
        rank: int = 0,
        size: int = 1,
        device: torch.device | str = "cpu",
        balanced: bool = False,
    ):
        self.batch_images, self.seed = batch_images, seed
        self.device = torch.device(device)
        self._own = slice(rank * batch_images // size, (rank + 1) * batch_images // size)
        self._columns = {
            name: (dataset.table("train", wanted.domain), wanted.domain or "", _column(wanted))
            for name, wanted in inputs.items()
        }
        for table, domain, column in self._columns.values():
            if column not in table.columns:
                raise DataError(f"The data set has no column {column!r} (it has {', '.join(table.columns)}).")
            if table.rows == 0:
                raise DataError(f"The training table {domain!r} is empty; nothing can be learnt from it.")
        tables = {domain: table for table, domain, _ in self._columns.values()}
        self._classes = {domain: _rows_by_class(table) for domain, table in tables.items()} if balanced else {}
        self._orders: dict[tuple[str, int], np.ndarray] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._next: tuple[int, Future[Batch]] | None = None

    def rows(self, table_rows: int, domain: str, position: int) -> np.ndarray:
        """Rows of the global batch that starts `position` images into training."""
        positions = np.arange(position, position + self.batch_images)
        if self._classes:
            return np.array([self._balanced_row(domain, position) for position in positions.tolist()])
        epochs, offsets = np.divmod(positions, table_rows)
        return np.concatenate(
            [self._order(table_rows, domain, int(e))[offsets[epochs == e]] for e in np.unique(epochs)]
        )

    def _balanced_row(self, domain: str, position: int) -> int:
        """Each class once in a turn, in random order; turns of a class go through its rows, one permutation after the
        other."""
        classes = self._classes[domain]
        turn, place = divmod(position, len(classes))
        label = self._order(len(classes), f"{domain} classes", turn)[place]
        epoch, offset = divmod(turn, len(classes[label]))
        return classes[label][self._order(len(classes[label]), f"{domain} class {label}", epoch)[offset]]

    def batch(self, position: int) -> Batch:
        """This worker's part of the global batch at `position` images, on the device; reads ahead the one after it."""
        expected, future = self._next or (None, None)
        batch = future.result() if future is not None and expected == position else self._read(position)
        following = position + self.batch_images
        self._next = following, self._reader.submit(self._read, following)
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def _read(self, position: int) -> Batch:
        rows: dict[str, np.ndarray] = {}
        batch: Batch = {}
        for name, (table, domain, column) in self._columns.items():
            if domain not in rows:
                rows[domain] = self.rows(table.rows, domain, position)[self._own]
            value = torch.from_numpy(table.read(column, rows[domain]))
            batch[name] = value.pin_memory() if self.device.type == "cuda" else value
        return batch

    def _order(self, table_rows: int, domain: str, epoch: int) -> np.ndarray:
        key = domain, epoch
        if key not in self._orders:
            # Small batches of a small set cross epochs often; the two epochs in use are kept per domain.
            self._orders = {k: v for k, v in self._orders.items() if k[0] != domain or k[1] == epoch - 1}
            generator = np.random.default_rng([self.seed, epoch, *domain.encode()])
            self._orders[key] = generator.permutation(table_rows)
        return self._orders[key]


def _rows_by_class(table: Table) -> list[np.ndarray]:
    if "label" not in table.columns:
        raise DataError("The data set has no labels to balance; take another or leave out balanced_classes.")
    labels = table.read("label", np.arange(table.rows))
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _column(wanted: Input) -> str:
    return wanted.column if wanted.resolution is None else f"{wanted.column}@{wanted.resolution}"
