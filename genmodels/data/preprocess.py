"""From examples to typed column shards in a local folder, in parallel, with the same bytes for any number of processes.

Runs of examples go to the processes in order and come back in order; decoding is what takes the time. This process
reads, hashes and writes.
"""

import hashlib
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from genmodels.data.entries import CatalogueEntry
from genmodels.data.examples import Example, Examples
from genmodels.data.images import TOO_SMALL, Levels, levels
from genmodels.data.manifest import Column, Manifest, Shard, Table, factor_column
from genmodels.errors import DataError, UnavailableError

VERSION = 1
"""Raise it when the same source comes to other bytes."""

SHARD_BYTES = 64 << 20
RUN_EXAMPLES, RUN_BYTES = 64, 16 << 20
FEW_EXAMPLES = 2_000  # starting a process costs as much as decoding a thousand small images
MAX_SET_ASIDE = 0.1
NO_LABEL = "no label in its name"
log = logging.getLogger(__name__)

Submit = Callable[[Iterable["Run"]], Iterator[tuple["Run", Levels]]]


@dataclass
class Run:
    """Examples of one table, in order."""

    table: str
    examples: list[Example] = field(default_factory=list)
    bytes: int = 0


@dataclass
class Preprocessed:
    """The manifest of what lies in the folder, and how long it took."""

    manifest: Manifest
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Over all input images, those set aside included."""
        return (sum(self.manifest.rows.values()) + sum(self.manifest.set_aside.values())) / max(self.seconds, 1e-9)


def preprocess(
    entry: CatalogueEntry,
    examples: Examples,
    folder: Path,
    *,
    name: str,
    resolution: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    processes: int | None = None,
    ray: bool = False,
) -> Preprocessed:
    """Writes the shards of a data set into `folder`.

    Args:
        entry, examples: the source, and what it holds.
        name: of the data set in the manifest.
        resolution: of the top of the pyramid.
        progress: told the images done and their total.
        processes: that decode; by default one per CPU this process may use.
        ray: decode in tasks of a Ray cluster instead.

    Raises:
        DataError: if more than a tenth of the images cannot be used, or a table or class is left empty.
    """
    started = time.perf_counter()
    account = _Account(entry.name, examples.count, resolution)
    tables: dict[str, _TableWriter] = {}
    how = {"resolution": resolution, "channels": entry.channels, "margin": entry.margin}
    with _submit(examples, how, processes, ray) as submit:
        for run, result in submit(_runs(examples, account)):
            account.add(run, result)
            writer = tables.setdefault(run.table, _TableWriter(folder, run.table))
            writer.add(result.columns)
            if examples.class_names:
                labels = [run.examples[position].label for position in result.kept]
                writer.add({"label": np.array(labels, np.int64)})
            for factor in run.examples[0].factors:
                values = [run.examples[position].factors[factor] for position in result.kept]
                writer.add({factor_column(factor): np.array(values, np.int64)})
            progress(account.done, examples.count)
    account.check_all()
    manifest = Manifest(
        name=name,
        digest="",
        resolution=resolution,
        channels=entry.channels,
        classes=len(examples.class_names),
        class_names=list(examples.class_names),
        licence=entry.licence,
        tables={table: tables[table].close() for table in sorted(tables)},
        set_aside=dict(sorted(account.set_aside.items())),
    )
    account.check_tables(manifest, examples)
    manifest = manifest.model_copy(update={"digest": manifest.content_digest()})
    return Preprocessed(manifest, time.perf_counter() - started)


class _Account:
    """Counts what was set aside and why, and stops the work as soon as it is too much."""

    def __init__(self, title: str, total: int, resolution: int):
        self.title, self.total, self.resolution = title, total, resolution
        self.done = 0
        self.set_aside: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._smallest_side = 1 << 30
        self._rows: Counter[tuple[str, int | None]] = Counter()

    def add(self, run: Run, result: Levels) -> None:
        """Enters one run; raises DataError if too much was set aside by now."""
        self.done += len(run.examples)
        self._rows.update((run.table, run.examples[position].label) for position in result.kept)
        self._smallest_side = min(self._smallest_side, result.smallest_side)
        for reason, position in result.first_set_aside.items():
            self._note(reason, run.examples[position].name, result.set_aside[reason])
        self._check()

    def skip(self, example: Example, reason: str) -> None:
        """Enters one example that is not even decoded."""
        self.done += 1
        self._note(reason, example.name, 1)
        self._check()

    def check_all(self) -> None:
        """Raises DataError if nothing is left."""
        if not self._rows:
            raise DataError(self._sentence() if self.set_aside else f"{self.title} holds no images.")

    def check_tables(self, manifest: Manifest, examples: Examples) -> None:
        """Raises DataError if a table or a class has no usable image."""
        for table in sorted(examples.tables):
            if not manifest.rows.get(table):
                why = self._sentence() if self.set_aside else "add some."
                raise DataError(f"{self.title} has no usable images for {table!r}; {why}")
        for label, name in enumerate(examples.class_names):
            if not self._rows["train", label]:
                raise DataError(f"The class {name!r} of {self.title} has no usable images to train on; add some.")

    def _note(self, reason: str, name: str, count: int) -> None:
        if reason not in self._first:
            self._first[reason] = name
            log.warning("%s: %r is set aside: %s.", self.title, name, reason)
        self.set_aside[reason] += count

    def _check(self) -> None:
        if sum(self.set_aside.values()) > MAX_SET_ASIDE * self.total:
            raise DataError(self._sentence())

    def _sentence(self) -> str:
        reasons = ", ".join(
            f"{count} {reason} (such as {self._first[reason]!r})" for reason, count in self.set_aside.most_common()
        )
        if self.set_aside.most_common(1)[0][0] == TOO_SMALL:
            fits = 1 << (max(self._smallest_side, 1).bit_length() - 1)
            advice = (
                f"the resolution is {self.resolution}×{self.resolution}, the shortest side {self._smallest_side}; "
                f"take `--set resolution={fits}` or less, or larger images"
            )
        else:
            advice = f"at most {MAX_SET_ASIDE:.0%} may be set aside; repair or remove them"
        return f"Too many of the {self.total} images of {self.title} cannot be used: {reasons}; {advice}."


class _TableWriter:
    """Columns of one table."""

    def __init__(self, folder: Path, table: str):
        self._folder, self._table = folder, table
        (folder / table).mkdir(parents=True, exist_ok=True)
        self._columns: dict[str, _ColumnWriter] = {}

    def add(self, columns: dict[str, np.ndarray]) -> None:
        for name, rows in columns.items():
            if name not in self._columns:
                self._columns[name] = _ColumnWriter(self._folder, f"{self._table}/{name}")
            self._columns[name].add(rows)

    def close(self) -> Table:
        columns = {name: self._columns[name].close() for name in sorted(self._columns)}
        rows = {sum(shard.rows for shard in column.shards) for column in columns.values()}
        return Table(rows=rows.pop(), columns=columns)


class _ColumnWriter:
    """Shards of one column: as many whole rows as fit into SHARD_BYTES, at least one."""

    def __init__(self, folder: Path, stem: str):
        self._folder, self._stem = folder, stem
        self._waiting: list[np.ndarray] = []
        self._rows = 0
        self._shards: list[Shard] = []
        self._like: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        self._like = rows[:0]
        self._waiting.append(rows)
        self._rows += len(rows)
        most = max(1, SHARD_BYTES // max(1, rows.dtype.itemsize * int(np.prod(rows.shape[1:]))))
        while self._rows >= most:
            together = np.concatenate(self._waiting)
            self._write(together[:most])
            self._waiting = [together[most:]]
            self._rows -= most

    def close(self) -> Column:
        assert self._like is not None
        if self._rows:
            self._write(np.concatenate(self._waiting))
        return Column(dtype=self._like.dtype.str, shape=self._like.shape[1:], shards=self._shards)

    def _write(self, rows: np.ndarray) -> None:
        file = f"{self._stem}-{len(self._shards):05d}.npy"
        np.save(self._folder / file, rows, allow_pickle=False)
        with open(self._folder / file, "rb") as written:
            sha256 = hashlib.file_digest(written, "sha256").hexdigest()
        size = (self._folder / file).stat().st_size
        self._shards.append(Shard(file=file, rows=len(rows), bytes=size, sha256=sha256))


def _runs(examples: Examples, account: _Account) -> Iterator[Run]:
    """The examples in runs of one table each; their limits do not depend on who works on them."""
    open_runs: dict[str, Run] = {}
    for example in examples.read():
        if examples.class_names and example.label is None:
            account.skip(example, NO_LABEL)
            continue
        run = open_runs.setdefault(example.table, Run(example.table))
        run.examples.append(example)
        run.bytes += len(example.content) if isinstance(example.content, bytes) else example.content.nbytes
        if len(run.examples) >= RUN_EXAMPLES or run.bytes >= RUN_BYTES:
            yield open_runs.pop(example.table)
    yield from open_runs.values()


@contextmanager
def _submit(examples: Examples, how: dict[str, int], processes: int | None, ray: bool) -> Iterator[Submit]:
    """How runs are worked on: here if there is little to decode, else by a pool of processes or by Ray tasks."""
    processes = processes or len(os.sched_getaffinity(0))
    if not examples.encoded or examples.count <= FEW_EXAMPLES or (processes == 1 and not ray):
        yield lambda runs: ((run, levels([e.content for e in run.examples], **how)) for run in runs)
    elif ray:
        yield _on_ray(how)
    else:
        # Spawned, because a forked child would inherit the locks of the threads that are about.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:

            def submit(run: Run) -> Any:
                return pool.submit(levels, [e.content for e in run.examples], **how)

            try:
                yield lambda runs: _in_order(runs, submit, lambda future: future.result(), lambda: 2 * processes)
            except BrokenProcessPool as error:
                raise UnavailableError(
                    "A preprocessing process was killed, perhaps because memory ran out; try again."
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


def _on_ray(how: dict[str, int]) -> Submit:
    import ray
    from ray.exceptions import RayError, RayTaskError

    ray.init(ignore_reinit_error=True)
    task: Any = ray.remote(levels)

    def submit(run: Run) -> Any:
        return task.remote([e.content for e in run.examples], **how)

    def result(reference: Any) -> Levels:
        try:
            return ray.get(reference)
        except RayError as error:
            if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
                raise error.cause from error  # the task's own, which it would meet again
            raise UnavailableError(f"A preprocessing task was lost ({type(error).__name__}); try again.") from error

    def in_flight() -> int:
        """The cluster may grow with what waits for it."""
        return 2 * max(1, int(ray.cluster_resources().get("CPU", 0)))

    return lambda runs: _in_order(runs, submit, result, in_flight)


def _in_order(
    runs: Iterable[Run], submit: Callable[[Run], Any], result: Callable[[Any], Levels], in_flight: Callable[[], int]
) -> Iterator[tuple[Run, Levels]]:
    """Runs and their results in the order of the runs, with a bounded number of them under way."""
    waiting: deque[tuple[Run, Any]] = deque()
    for run in runs:
        waiting.append((run, submit(run)))
        if len(waiting) >= in_flight():
            first, ticket = waiting.popleft()
            yield first, result(ticket)
    for first, ticket in waiting:
        yield first, result(ticket)
