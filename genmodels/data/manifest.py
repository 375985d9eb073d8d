"""What a prepared data set is: named by its content, described by a manifest that is written last.

datasets/<name>/<digest>/manifest.json
datasets/<name>/<digest>/<table>/<column>-<shard>.npy
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pydantic import Field

from genmodels.data import dataset
from genmodels.data.archives import check_name
from genmodels.errors import DataError
from genmodels.settings import settings
from genmodels.spec import Record, digest, is_points
from genmodels.storage.cache import keep, make_room
from genmodels.storage.files import locked
from genmodels.storage.objects import store

TRANSFERS = 4
FACTOR = "factor@"


class Shard(Record):
    """A run of rows of a column, one .npy file."""

    file: str = Field(description="relative to the manifest")
    rows: int
    bytes: int
    sha256: str


class Column(Record):
    """One named, typed thing that every row of a table has; images are uint8, points float32 in [-1, 1]; both
    are (C, H, W)."""

    dtype: str
    shape: tuple[int, ...] = Field(description="of one row")
    shards: list[Shard]


class Table(Record):
    """Rows of one split, and of one domain where the set is unpaired."""

    rows: int
    columns: dict[str, Column] = Field(description="image@R for every level R of the pyramid, label, factor@NAME")


class Manifest(Record):
    """A prepared data set. `digest` names what is learnt from, and nothing else."""

    name: str
    digest: str
    resolution: int
    channels: int
    classes: int = Field(description="of the label column; 0 if there is none")
    class_names: list[str]
    licence: str
    tables: dict[str, Table] = Field(description="train and test, or train_a, train_b, test_a and test_b")
    set_aside: dict[str, int] = Field(description="inputs left out, counted by reason")

    @property
    def key(self) -> str:
        """Where the manifest lies in the object store."""
        return manifest_key(self.name, self.digest)

    @property
    def has_points(self) -> bool:
        """Whether its images are points."""
        return is_points(self.resolution)

    @property
    def factors(self) -> list[str]:
        """The names of the factors that the images were made from, where they are known."""
        columns = {column for table in self.tables.values() for column in table.columns}
        return sorted(column.removeprefix(FACTOR) for column in columns if column.startswith(FACTOR))

    @property
    def rows(self) -> dict[str, int]:
        """Rows by table."""
        return {name: table.rows for name, table in self.tables.items()}

    def content_digest(self) -> str:
        """The digest that the content asks for: the same wherever, under whatever name it was prepared."""
        return digest(self.model_dump(mode="json", include={"resolution", "channels", "class_names", "tables"}))

    def shards(self) -> Iterator[Shard]:
        """All shards of all tables."""
        for table in self.tables.values():
            for column in table.columns.values():
                yield from column.shards


def factor_column(name: str) -> str:
    """The column of a factor's values, int64."""
    return f"{FACTOR}{name}"


def dataset_key(name: str, dataset_digest: str) -> str:
    """Where a data set's objects lie in the object store."""
    return f"datasets/{name}/{dataset_digest}"


def manifest_key(name: str, dataset_digest: str) -> str:
    """Where a data set's manifest lies in the object store."""
    return f"{dataset_key(name, dataset_digest)}/manifest.json"


def cache_folder(dataset_digest: str) -> Path:
    """Where this node keeps its copy of a data set's shards."""
    return settings().cache / "datasets" / dataset_digest


def publish(manifest: Manifest, folder: Path) -> None:
    """Uploads the shards that lie in `folder` and then the manifest; what is already there is left alone.

    The same content has the same keys, so two who publish it at the same time write the same objects.
    """
    prefix = dataset_key(manifest.name, manifest.digest)
    present = {entry.key: entry.size for entry in store().list(f"{prefix}/")}
    missing = [shard for shard in manifest.shards() if present.get(f"{prefix}/{shard.file}") != shard.bytes]
    with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="upload") as uploads:
        list(uploads.map(lambda shard: store().upload(folder / shard.file, f"{prefix}/{shard.file}"), missing))
    store().put_record(manifest.key, manifest, if_absent=True)


def whats_missing(name: str, dataset_digest: str) -> str | None:
    """Why a data set cannot be used, in words; None if the manifest and all its shards are there."""
    key, prefix = manifest_key(name, dataset_digest), dataset_key(name, dataset_digest)
    manifest = store().get_record(key, Manifest)
    if manifest is None:
        return f"{store().uri(key)} is gone"
    present = {entry.key: entry.size for entry in store().list(f"{prefix}/")}
    missing = [s.file for s in manifest.shards() if present.get(f"{prefix}/{s.file}") != s.bytes]
    return f"{store().uri(prefix)}/{missing[0]} is gone or of another size" if missing else None


def open_dataset(name: str, dataset_digest: str) -> tuple[Manifest, dataset.Dataset]:
    """A prepared data set, memory-mapped from this node's copy, which is made on the first call and then shared.

    Raises:
        DataError: if there is no such data set, a shard is not what the manifest says or would lie elsewhere.
    """
    prefix = dataset_key(name, dataset_digest)
    manifest = store().get_record(manifest_key(name, dataset_digest), Manifest)
    if manifest is None:
        raise DataError(f"There is no data set {store().uri(prefix)}; run `genmodels prepare` first.")
    if manifest.content_digest() != dataset_digest:
        raise DataError(f"{store().uri(manifest.key)} was changed after it was written; remove it and prepare again.")
    for shard in manifest.shards():
        check_name(shard.file, manifest.key)
    folder = cache_folder(dataset_digest)
    keep(folder)
    with locked(folder / ".lock"), ThreadPoolExecutor(TRANSFERS, thread_name_prefix="download") as downloads:
        missing = [shard for shard in manifest.shards() if not _is_there(shard, folder)]
        make_room(sum(shard.bytes for shard in missing))
        list(downloads.map(lambda shard: _fetch(prefix, shard, folder), missing))
    return manifest, dataset.Dataset({name: _mapped(table, folder) for name, table in manifest.tables.items()})


def _is_there(shard: Shard, folder: Path) -> bool:
    path = folder / shard.file
    return path.is_file() and path.stat().st_size == shard.bytes


def _fetch(prefix: str, shard: Shard, folder: Path) -> None:
    store().download(f"{prefix}/{shard.file}", folder / shard.file, sha256=shard.sha256)


def _mapped(table: Table, folder: Path) -> dataset.Table:
    columns = {}
    for name, column in table.columns.items():
        shards = [np.load(folder / shard.file, mmap_mode="r", allow_pickle=False) for shard in column.shards]
        for array, shard in zip(shards, column.shards, strict=True):
            if array.shape != (shard.rows, *column.shape) or array.dtype != np.dtype(column.dtype):
                raise DataError(f"{folder / shard.file} is not what its manifest says; remove it and repeat.")
        columns[name] = shards
    return dataset.Table(columns)
